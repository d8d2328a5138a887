//! Runs the statements of [`crate::store::records`] over one row.

use sqlx::{Arguments as _, AssertSqlSafe, SqliteConnection, sqlite::SqliteArguments};

use crate::store::{
    error::BackendError,
    records::{Record, Value, insert_into},
};

/// Runs a statement over a record, which it reads as `n`; returns the number of rows it changed.
pub(super) async fn execute(
    connection: &mut SqliteConnection,
    record: Record<'_>,
    statement: &str,
) -> Result<u64, BackendError> {
    let names: Vec<&str> = record.iter().map(|(name, _)| *name).collect();
    let marks = vec!["?"; names.len()];
    let sql = format!(
        "with n ({}) as (values ({})) {statement}",
        names.join(", "),
        marks.join(", ")
    );
    let mut arguments = SqliteArguments::default();
    for (_, value) in record {
        let added = match value {
            Value::Uuid(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Json(value) | Value::JsonText(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Int(value) => arguments.add(value),
            Value::Real(value) => arguments.add(value),
            Value::Double(value) => arguments.add(value),
            Value::Time(value) => arguments.add(value),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    let done = sqlx::query_with(AssertSqlSafe(sql), arguments)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Inserts a row into a table, if there is one.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    table: &str,
    row: Option<Record<'_>>,
    rest: &str,
) -> Result<(), BackendError> {
    if let Some(row) = row {
        let statement = insert_into(table, &row, rest);
        execute(connection, row, &statement).await?;
    }
    Ok(())
}
