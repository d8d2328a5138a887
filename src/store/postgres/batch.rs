//! Runs the statements of [`crate::store::records`] over a batch, as one array for each column.

use sqlx::{
    Arguments as _, AssertSqlSafe, FromRow, PgConnection,
    postgres::{PgArguments, PgRow},
};

use super::text::{decode_row, encode, encode_json};
use crate::store::{
    error::BackendError,
    records::{Record, Value, insert_into},
    row::{JOB_COLUMNS, Row},
};

/// Runs a statement over records, which it reads as `n`.
pub(super) async fn execute(
    connection: &mut PgConnection,
    records: &[Record<'_>],
    statement: &str,
) -> Result<(), BackendError> {
    if let Some((sql, arguments)) = prepare(records, statement)? {
        sqlx::query_with(AssertSqlSafe(sql), arguments)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Inserts rows into a table.
pub(super) async fn insert<'r>(
    connection: &mut PgConnection,
    table: &str,
    rows: impl Iterator<Item = Record<'r>>,
    rest: &str,
) -> Result<(), BackendError> {
    let rows: Vec<_> = rows.collect();
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let statement = insert_into(table, first, rest);
    execute(connection, &rows, &statement).await
}

/// Runs a statement over records and returns what it returns.
pub(super) async fn fetch<T>(
    connection: &mut PgConnection,
    records: &[Record<'_>],
    statement: &str,
) -> Result<Vec<T>, BackendError>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    match prepare(records, statement)? {
        Some((sql, arguments)) => Ok(sqlx::query_as_with(AssertSqlSafe(sql), arguments)
            .fetch_all(connection)
            .await?),
        None => Ok(Vec::new()),
    }
}

/// Runs an update of `jobs` over records and returns the changed rows, without their texts.
pub(super) async fn update_jobs(
    connection: &mut PgConnection,
    records: &[Record<'_>],
    statement: &str,
) -> Result<Vec<Row>, BackendError> {
    let statement =
        format!("{statement} returning{JOB_COLUMNS}null::text as text, null::text as logprobs");
    let rows: Vec<Row> = fetch(connection, records, &statement).await?;
    Ok(rows.into_iter().map(decode_row).collect())
}

/// The statement behind its rows, and their values; `None` without rows.
fn prepare(
    records: &[Record<'_>],
    statement: &str,
) -> Result<Option<(String, PgArguments)>, BackendError> {
    let Some(first) = records.first() else {
        return Ok(None);
    };
    let mut arguments = PgArguments::default();
    let (mut names, mut selected, mut arrays) = (Vec::new(), Vec::new(), Vec::new());
    for (at, (name, kind)) in first.iter().enumerate() {
        macro_rules! array {
            ($variant:ident, $value:ident => $stored:expr) => {
                arguments.add(
                    records
                        .iter()
                        .map(|record| match &record[at].1 {
                            Value::$variant($value) => $stored,
                            other => unreachable!("{name} is {kind:?} and {other:?}"),
                        })
                        .collect::<Vec<_>>(),
                )
            };
        }
        let (sql_type, added) = match kind {
            Value::Uuid(_) => ("uuid", array!(Uuid, value => *value)),
            Value::Text(_) => ("text", array!(Text, value => value.as_deref().map(encode))),
            Value::Json(_) => (
                "text",
                array!(Json, value => value.as_deref().map(encode_json)),
            ),
            Value::JsonText(_) => ("text", array!(JsonText, value => value.as_deref())),
            Value::Bytes(_) => ("bytea", array!(Bytes, value => *value)),
            Value::Int(_) => ("int4", array!(Int, value => *value)),
            Value::Real(_) => ("float4", array!(Real, value => *value)),
            Value::Double(_) => ("float8", array!(Double, value => *value)),
            Value::Time(_) => ("timestamptz", array!(Time, value => *value)),
        };
        added.map_err(sqlx::Error::Encode)?;
        names.push(*name);
        selected.push(match kind {
            Value::Json(_) => format!("u.{name}::jsonb as {name}"),
            _ => format!("u.{name}"),
        });
        arrays.push(format!("${}::{sql_type}[]", at + 1));
    }
    let sql = format!(
        "with n as (select {} from unnest({}) as u ({})) {statement}",
        selected.join(", "),
        arrays.join(", "),
        names.join(", ")
    );
    Ok(Some((sql, arguments)))
}
