//! Rows of the database as records, and values as the database's.

use std::time::Duration;

use bytes::Bytes;
use holdfast_wire::{
    api::{self, OnDisconnect},
    ids::{Epoch, ExecId, Generation, Instance, SandboxId},
};
use jiff::Timestamp;
use prost::Message;
use sqlx::{Row, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Desired, ExecRecord, Finished, SandboxRecord, Sent, StoreError, Why, record};

pub(super) fn sandbox_of(row: &SqliteRow) -> Result<SandboxRecord, StoreError> {
    let desired: &str = get(row, "desired")?;
    let Some(desired) = Desired::parse(desired) else {
        return Err(decode("sandbox.desired", format!("{desired:?} is no such word")));
    };
    Ok(SandboxRecord {
        id: SandboxId(uuid(row, "id")?),
        name: get(row, "name")?,
        spec: message(row, "spec")?.unwrap_or_default(),
        desired,
        why: Why::parse(get(row, "why")?),
        grace: Duration::from_millis(count(row, "grace_ms")?),
        generation: Generation(count(row, "generation")?),
        made: Generation(count(row, "made")?),
        attached: Generation(count(row, "attached")?),
        epoch: Epoch(count(row, "epoch")?),
        driver: get(row, "driver")?,
        version: count(row, "version")?,
        created_at: time(row, "created_at")?.unwrap_or_default(),
        last_error: message(row, "last_error")?,
        expires_at: time(row, "expires_at")?,
        active_at: time(row, "active_at")?,
        main: Generation(count(row, "main")?),
    })
}

pub(super) fn exec_of(row: &SqliteRow) -> Result<ExecRecord, StoreError> {
    let sent = match get::<Option<&[u8]>>(row, "instance")? {
        None => None,
        Some(_) => Some(Sent {
            instance: Instance(uuid(row, "instance")?),
            generation: Generation(count(row, "generation")?),
            epoch: Epoch(count(row, "epoch")?),
        }),
    };
    let finished = match message::<api::Outcome>(row, "outcome")? {
        None => None,
        Some(outcome) => Some(Finished {
            outcome,
            at: time(row, "ended_at")?.unwrap_or_default(),
            stdout_bytes: count(row, "stdout_bytes")?,
            stderr_bytes: count(row, "stderr_bytes")?,
            left_processes: get(row, "left_processes")?,
        }),
    };
    Ok(ExecRecord {
        exec: ExecId(uuid(row, "id")?),
        sandbox: SandboxId(uuid(row, "sandbox")?),
        spec_digest: Bytes::copy_from_slice(get(row, "spec_digest")?),
        command: get(row, "command")?,
        tty: get(row, "tty")?,
        // A choice of a newer version is as good as the default.
        on_disconnect: OnDisconnect::try_from(get::<i32>(row, "on_disconnect")?).unwrap_or_default(),
        retain_for: Duration::from_millis(count(row, "retain_ms")?),
        accepted_at: time(row, "accepted_at")?.unwrap_or_default(),
        start_deadline_at: time(row, "start_deadline_at")?.unwrap_or_default(),
        sent,
        pid: u32::try_from(count(row, "pid")?).unwrap_or_default(),
        started_at: time(row, "started_at")?,
        finished,
    })
}

fn get<'r, T>(row: &'r SqliteRow, column: &'static str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|error| decode(column, error))
}

fn uuid(row: &SqliteRow, column: &'static str) -> Result<Uuid, StoreError> {
    Uuid::from_slice(get(row, column)?).map_err(|error| decode(column, error))
}

fn count(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    u64::try_from(get::<i64>(row, column)?).map_err(|error| decode(column, error))
}

fn time(row: &SqliteRow, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = get(row, column)?;
    micros.map(Timestamp::from_microsecond).transpose().map_err(|error| decode(column, error))
}

fn message<M: Message + Default>(row: &SqliteRow, column: &'static str) -> Result<Option<M>, StoreError> {
    let bytes: Option<&[u8]> = get(row, column)?;
    bytes.map(M::decode).transpose().map_err(|error| decode(column, error))
}

fn decode(what: &'static str, message: impl ToString) -> StoreError {
    StoreError::Decode { what, message: message.to_string() }
}

/// SQL's integers are signed. What does not fit is a number that no clock and no counter here reaches.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn millis(time: Duration) -> i64 {
    int(record::millis(time))
}

pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}
