//! How the types of [`crate::job`] are read from either database: by name, as text.

use sqlx::{Database, Decode, Type, error::BoxDynError};

use super::{DeferredQueue, Scopes};
use crate::job::{AnswerSource, FinishReason, JobState, Tenant, Tier};

macro_rules! stored_as_text {
    ($($stored:ty),*) => {$(
        impl<DB: Database> Type<DB> for $stored
        where
            String: Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <String as Type<DB>>::type_info()
            }

            fn compatible(found: &DB::TypeInfo) -> bool {
                <String as Type<DB>>::compatible(found)
            }
        }

        impl<'r, DB: Database> Decode<'r, DB> for $stored
        where
            &'r str: Decode<'r, DB>,
        {
            fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
                let name = <&str as Decode<DB>>::decode(value)?;
                name.parse().map_err(|error: String| error.into())
            }
        }
    )*};
}

stored_as_text!(
    JobState,
    Tier,
    AnswerSource,
    FinishReason,
    Tenant,
    DeferredQueue,
    Scopes
);
