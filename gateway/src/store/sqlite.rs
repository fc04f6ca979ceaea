//! The store in one SQLite file.
//!
//! Queries go to one of three pools: one connection writes what must survive a loss of power (sandboxes, epochs,
//! to whom an exec was sent: each commit reaches the disk before it is answered), one writes what need not, and a few
//! read beside them (WAL). A store in memory has one connection for all.
//!
//! What need not: that an exec was admitted, started, ended. It survives the gateway's death at once, and the
//! machine's from the next commit of the other kind on; what is lost between is told again by the supervisors'
//! complete reports. An fsync for each would cost every exec three of them, one after the other with all others'.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_wire::ids::{Epoch, ExecId, Generation, SandboxId};
use jiff::Timestamp;
use prost::Message;
use sqlx::{
    Connection as _, Row, SqlSafeStr, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteQueryResult, SqliteSynchronous,
    },
};

use super::{
    Admission, ExecRecord, Finished, MAX_ENDED_EXECS, MAX_PAGE, SandboxRecord, Sent, Store, StoreError,
    lost_with_the_sandbox,
    record::check_size,
    row::{exec_of, int, micros, millis, sandbox_of},
};

/// The schema's history, a file each; a store is brought up to date by those that it has not seen.
///
/// Listed by hand: sqlx's macro would list them too, and compile SQLite a second time, for the compiler's own use.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    Migrator::with_migrations(vec![
        migration(1, "sandboxes and execs", include_str!("../../migrations/0001_sandboxes_and_execs.sql")),
        migration(2, "lifetimes", include_str!("../../migrations/0002_lifetimes.sql")),
        migration(3, "main commands", include_str!("../../migrations/0003_main_commands.sql")),
    ])
});

fn migration(version: i64, description: &'static str, sql: &'static str) -> Migration {
    Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
}

/// "HFst", as the first migration writes it.
const APPLICATION_ID: i64 = 0x4846_7374;

/// How long a statement waits for another program's lock on the file: a backup, or a person with a shell.
const BUSY: Duration = Duration::from_secs(5);
/// How long a verb waits for a connection. Writers queue behind each other; ten seconds of it is a disk that hangs.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Connections that read. Reads are short; more would only wait for the same disk.
const READERS: u32 = 4;

/// Keeps records in an SQLite file, mode 0600, or in memory.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    /// Without an fsync a commit.
    quick: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens `sqlite:PATH` (made if it is not there) or `sqlite::memory:`, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Open`], [`StoreError::Corrupt`], [`StoreError::NewerSchema`]: each says
    /// what to do.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let wrong = |message: &str| StoreError::Url { url: url.to_owned(), message: message.to_owned() };
        let Some(path) = url.strip_prefix("sqlite:") else {
            return Err(wrong("only sqlite:PATH and sqlite::memory: are stores"));
        };
        match path.strip_prefix("//").unwrap_or(path) {
            ":memory:" => Self::in_memory().await,
            "" => Err(wrong("names no file: give sqlite:PATH")),
            path if path.contains('?') => Err(wrong("parameters are not taken: give sqlite:PATH alone")),
            path => Self::open_file(Path::new(path)).await,
        }
    }

    /// Opens the file at `path`, made if it is not there; its directory must be.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        make_private(path)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source: source.into() })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let failed = |source| opening(path, source);
        let pool = SqlitePoolOptions::new().acquire_timeout(ACQUIRE).after_release(|connection, _| {
            // A full disk makes SQLite roll back by itself, of which sqlx knows nothing: it would count a transaction
            // as open for ever, and begin no other. The ping comes after a rollback that is on its way.
            Box::pin(async move {
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        });
        let writer = pool.clone().max_connections(1).connect_with(options.clone()).await.map_err(failed)?;
        check_file(&writer, path).await?;
        migrate(&writer, path).await?;
        let quick = options.clone().synchronous(SqliteSynchronous::Normal);
        let quick = pool.clone().max_connections(1).connect_lazy_with(quick);
        let readers = pool.max_connections(READERS).connect_lazy_with(options);
        Ok(Self { writer, quick, readers })
    }

    /// A store that is gone with the value.
    async fn in_memory() -> Result<Self, StoreError> {
        let path = Path::new(":memory:");
        // Each connection to it is a store of its own: one, and never another.
        let pool = SqlitePoolOptions::new()
            .acquire_timeout(ACQUIRE)
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None);
        let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
        let writer = pool.connect_with(options).await.map_err(|source| opening(path, source))?;
        migrate(&writer, path).await?;
        Ok(Self { readers: writer.clone(), quick: writer.clone(), writer })
    }

    /// Takes an exec in, and notes the workload whose main command it is, if it is one.
    async fn take_in(&self, record: &ExecRecord, main: Option<Generation>) -> Result<Admission, StoreError> {
        record.check()?;
        let failed = |error| query("admitting an exec", error);
        let mut transaction = self.quick.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let existing = sqlx::query("SELECT * FROM exec WHERE id = ?")
            .bind(&record.exec.0.as_bytes()[..])
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed)?;
        if let Some(row) = existing {
            return Ok(Admission::Existing(Box::new(exec_of(&row)?)));
        }
        let finished = record.finished.as_ref();
        let result = sqlx::query(
            "INSERT INTO exec (id, sandbox, spec_digest, command, tty, on_disconnect, retain_ms, accepted_at, \
             start_deadline_at, instance, generation, epoch, pid, started_at, outcome, ended_at, retain_until, \
             stdout_bytes, stderr_bytes, left_processes) \
             SELECT ?, id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM sandbox WHERE id = ?",
        )
        .bind(&record.exec.0.as_bytes()[..])
        .bind(&record.spec_digest[..])
        .bind(&record.command)
        .bind(record.tty)
        .bind(i32::from(record.on_disconnect))
        .bind(millis(record.retain_for))
        .bind(micros(record.accepted_at))
        .bind(micros(record.start_deadline_at))
        .bind(record.sent.map(|sent| sent.instance.0.as_bytes().to_vec()))
        .bind(record.sent.map(|sent| int(sent.generation.0)))
        .bind(record.sent.map(|sent| int(sent.epoch.0)))
        .bind(i64::from(record.pid))
        .bind(record.started_at.map(micros))
        .bind(record.outcome().map(Message::encode_to_vec))
        .bind(finished.map(|finished| micros(finished.at)))
        .bind(record.retain_until().map(micros))
        .bind(finished.map_or(0, |finished| int(finished.stdout_bytes)))
        .bind(finished.map_or(0, |finished| int(finished.stderr_bytes)))
        .bind(finished.is_some_and(|finished| finished.left_processes))
        .bind(&record.sandbox.0.as_bytes()[..])
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if result.rows_affected() == 0 {
            return Err(StoreError::SandboxMissing { id: record.sandbox });
        }
        if let Some(generation) = main {
            sqlx::query("UPDATE sandbox SET main = max(main, ?) WHERE id = ?")
                .bind(int(generation.0))
                .bind(&record.sandbox.0.as_bytes()[..])
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(Admission::Admitted)
    }

    /// Why a sandbox was not written: it is gone, or it has another version.
    async fn missing_or_stale(&self, record: &SandboxRecord) -> StoreError {
        match self.get(record.id).await {
            Ok(Some(_)) => StoreError::Stale { id: record.id, version: record.version },
            Ok(None) => StoreError::SandboxMissing { id: record.id },
            Err(error) => error,
        }
    }

    /// Whether a statement that changed nothing changed nothing because the exec is not there.
    async fn changed(&self, exec: ExecId, result: &SqliteQueryResult) -> Result<bool, StoreError> {
        if result.rows_affected() > 0 {
            return Ok(true);
        }
        match self.exec(exec).await? {
            Some(_) => Ok(false),
            None => Err(StoreError::ExecMissing { id: exec }),
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn insert(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        record.check()?;
        let result = sqlx::query(
            "INSERT INTO sandbox (id, name, spec, desired, grace_ms, generation, made, attached, epoch, \
             driver, version, created_at, last_error, why, expires_at, active_at, main) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&record.id.0.as_bytes()[..])
        .bind(&record.name)
        .bind(record.spec.encode_to_vec())
        .bind(record.desired.as_str())
        .bind(millis(record.grace))
        .bind(int(record.generation.0))
        .bind(int(record.made.0))
        .bind(int(record.attached.0))
        .bind(int(record.epoch.0))
        .bind(&record.driver)
        .bind(micros(record.created_at))
        .bind(record.last_error.as_ref().map(Message::encode_to_vec))
        .bind(record.why.as_str())
        .bind(record.expires_at.map(micros))
        .bind(record.active_at.map(micros))
        .bind(int(record.main.0))
        .execute(&self.writer)
        .await;
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_unique_violation(&error, "sandbox.name") => {
                Err(StoreError::NameTaken { name: record.name.clone() })
            }
            Err(error) if is_unique_violation(&error, "sandbox.id") => {
                Err(StoreError::IdTaken { id: record.id })
            }
            Err(error) => Err(query("adding a sandbox", error)),
        }
    }

    async fn update(&self, record: &SandboxRecord) -> Result<u64, StoreError> {
        record.check()?;
        let written = sqlx::query(
            "UPDATE sandbox SET name = ?, spec = ?, desired = ?, grace_ms = ?, generation = ?, made = ?, \
             attached = ?, driver = ?, created_at = ?, last_error = ?, why = ?, expires_at = ?, active_at = ?, \
             version = version + 1 \
             WHERE id = ? AND version = ?",
        )
        .bind(&record.name)
        .bind(record.spec.encode_to_vec())
        .bind(record.desired.as_str())
        .bind(millis(record.grace))
        .bind(int(record.generation.0))
        .bind(int(record.made.0))
        .bind(int(record.attached.0))
        .bind(&record.driver)
        .bind(micros(record.created_at))
        .bind(record.last_error.as_ref().map(Message::encode_to_vec))
        .bind(record.why.as_str())
        .bind(record.expires_at.map(micros))
        .bind(record.active_at.map(micros))
        .bind(&record.id.0.as_bytes()[..])
        .bind(int(record.version))
        .execute(&self.writer)
        .await
        .map_err(|error| query("writing a sandbox", error))?;
        if written.rows_affected() == 0 {
            return Err(self.missing_or_stale(record).await);
        }
        Ok(record.version + 1)
    }

    async fn get(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM sandbox WHERE id = ?")
            .bind(&id.0.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| query("reading a sandbox", error))?;
        row.as_ref().map(sandbox_of).transpose()
    }

    async fn find(&self, name: &str) -> Result<Option<SandboxRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM sandbox WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| query("finding a sandbox", error))?;
        row.as_ref().map(sandbox_of).transpose()
    }

    async fn list(&self, after: Option<SandboxId>, limit: usize) -> Result<Vec<SandboxRecord>, StoreError> {
        // No id is below the empty blob.
        let after = after.map_or(Vec::new(), |id| id.0.as_bytes().to_vec());
        let rows = sqlx::query("SELECT * FROM sandbox WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(int(limit.min(MAX_PAGE) as u64))
            .fetch_all(&self.readers)
            .await
            .map_err(|error| query("listing sandboxes", error))?;
        rows.iter().map(sandbox_of).collect()
    }

    async fn delete(&self, id: SandboxId, at: Timestamp) -> Result<bool, StoreError> {
        let failed = |error| query("removing a sandbox", error);
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::query(
            "UPDATE exec SET outcome = ?, ended_at = ?, retain_until = ? + retain_ms * 1000 \
             WHERE sandbox = ? AND outcome IS NULL",
        )
        .bind(lost_with_the_sandbox().encode_to_vec())
        .bind(micros(at))
        .bind(micros(at))
        .bind(&id.0.as_bytes()[..])
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        let removed = sqlx::query("DELETE FROM sandbox WHERE id = ?")
            .bind(&id.0.as_bytes()[..])
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(removed.rows_affected() > 0)
    }

    async fn next_epoch(&self, id: SandboxId) -> Result<Epoch, StoreError> {
        let failed = |error| query("counting the epoch up", error);
        // All rows, although there is one at most: the statement commits after its last row, and only whoever asks for
        // more than the first hears that the disk is full.
        let rows = sqlx::query("UPDATE sandbox SET epoch = epoch + 1 WHERE id = ? RETURNING epoch")
            .bind(&id.0.as_bytes()[..])
            .fetch_all(&self.writer)
            .await
            .map_err(failed)?;
        let Some(row) = rows.first() else { return Err(StoreError::SandboxMissing { id }) };
        let epoch: i64 = row.try_get(0).map_err(failed)?;
        Ok(Epoch(epoch.unsigned_abs()))
    }

    async fn admit(&self, record: &ExecRecord) -> Result<Admission, StoreError> {
        self.take_in(record, None).await
    }

    async fn admit_main(&self, record: &ExecRecord, generation: Generation) -> Result<Admission, StoreError> {
        self.take_in(record, Some(generation)).await
    }

    async fn exec(&self, id: ExecId) -> Result<Option<ExecRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM exec WHERE id = ?")
            .bind(&id.0.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| query("reading an exec", error))?;
        row.as_ref().map(exec_of).transpose()
    }

    async fn execs_of(&self, sandbox: SandboxId, limit: usize) -> Result<Vec<ExecRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM exec WHERE sandbox = ? ORDER BY accepted_at DESC, id DESC LIMIT ?")
                .bind(&sandbox.0.as_bytes()[..])
                .bind(int(limit.min(MAX_PAGE) as u64))
                .fetch_all(&self.readers)
                .await
                .map_err(|error| query("listing execs", error))?;
        rows.iter().map(exec_of).collect()
    }

    async fn unfinished(&self, sandbox: SandboxId) -> Result<Vec<ExecRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM exec WHERE sandbox = ? AND outcome IS NULL ORDER BY accepted_at, id")
                .bind(&sandbox.0.as_bytes()[..])
                .fetch_all(&self.readers)
                .await
                .map_err(|error| query("listing unfinished execs", error))?;
        rows.iter().map(exec_of).collect()
    }

    async fn sent(&self, exec: ExecId, sent: Sent) -> Result<Option<Sent>, StoreError> {
        sqlx::query(
            "UPDATE exec SET instance = ?, generation = ?, epoch = ?
             WHERE id = ? AND instance IS NULL AND outcome IS NULL",
        )
        .bind(&sent.instance.0.as_bytes()[..])
        .bind(int(sent.generation.0))
        .bind(int(sent.epoch.0))
        .bind(&exec.0.as_bytes()[..])
        .execute(&self.writer)
        .await
        .map_err(|error| query("noting where an exec is sent", error))?;
        // Written once and never changed, so that reading it afterwards reads what holds.
        let Some(record) = self.exec(exec).await? else { return Err(StoreError::ExecMissing { id: exec }) };
        Ok(record.sent.filter(|_| record.finished.is_none()))
    }

    async fn started(&self, exec: ExecId, pid: u32, at: Timestamp) -> Result<bool, StoreError> {
        let result = sqlx::query(
            "UPDATE exec SET started_at = ?, pid = ? WHERE id = ? AND started_at IS NULL AND outcome IS NULL",
        )
        .bind(micros(at))
        .bind(i64::from(pid))
        .bind(&exec.0.as_bytes()[..])
        .execute(&self.quick)
        .await
        .map_err(|error| query("noting an exec's start", error))?;
        self.changed(exec, &result).await
    }

    async fn finish(&self, exec: ExecId, finished: &Finished) -> Result<bool, StoreError> {
        finished.check()?;
        let result = sqlx::query(
            "UPDATE exec SET outcome = ?, ended_at = ?, retain_until = ? + retain_ms * 1000, stdout_bytes = ?, \
             stderr_bytes = ?, left_processes = ? WHERE id = ? AND outcome IS NULL",
        )
        .bind(finished.outcome.encode_to_vec())
        .bind(micros(finished.at))
        .bind(micros(finished.at))
        .bind(int(finished.stdout_bytes))
        .bind(int(finished.stderr_bytes))
        .bind(finished.left_processes)
        .bind(&exec.0.as_bytes()[..])
        .execute(&self.quick)
        .await
        .map_err(|error| query("noting an exec's end", error))?;
        self.changed(exec, &result).await
    }

    async fn forget_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        let failed = |error| query("forgetting ended execs", error);
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let expired = sqlx::query("DELETE FROM exec WHERE outcome IS NOT NULL AND retain_until < ?")
            .bind(micros(time))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let surplus = sqlx::query(
            "DELETE FROM exec WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER \
             (PARTITION BY sandbox ORDER BY ended_at DESC, id DESC) AS place FROM exec WHERE outcome IS NOT NULL) \
             WHERE place > ?)",
        )
        .bind(int(MAX_ENDED_EXECS as u64))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(expired.rows_affected() + surplus.rows_affected())
    }

    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let failed = |error| query("reading a value of the gateway's own", error);
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        row.map(|row| row.try_get::<Vec<u8>, _>(0).map(Bytes::from).map_err(failed)).transpose()
    }

    async fn set_meta(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        check_size("a value of the gateway's own", value.len())?;
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(&value[..])
            .execute(&self.writer)
            .await
            .map_err(|error| query("writing a value of the gateway's own", error))?;
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // A write that changes nothing: a store that can only be read is not ready.
        let failed = |error| query("asking the store", error);
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        transaction.rollback().await.map_err(failed)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.quick.close().await;
        self.writer.close().await;
    }
}

/// Makes the file if it is not there, and takes it from the group and the world. SQLite gives its other files
/// (`-wal`, `-shm`) the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Whether the file is a store, or an empty one.
async fn check_file(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let failed = |source| opening(path, source);
    let damaged = |message: String| StoreError::Corrupt { path: path.to_owned(), message };
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(pool).await.map_err(failed)?;
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(pool).await.map_err(failed)?;
    if id != APPLICATION_ID && (id != 0 || tables != 0) {
        return Err(damaged("it is another program's database".to_owned()));
    }
    let verdict: String =
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(pool).await.map_err(failed)?;
    if verdict != "ok" {
        return Err(damaged(verdict));
    }
    Ok(())
}

async fn migrate(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    let path = || path.to_owned();
    MIGRATIONS.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) | MigrateError::VersionTooNew(found, _) if found > known => {
            StoreError::NewerSchema { path: path(), found, known }
        }
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) | MigrateError::Dirty(_) => {
            StoreError::Corrupt { path: path(), message: error.to_string() }
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => opening(&path(), error),
        error => StoreError::Open { path: path(), source: error.into() },
    })
}

/// Sorts damage from other failures.
fn opening(path: &Path, source: sqlx::Error) -> StoreError {
    // Primary result codes: SQLITE_CORRUPT and SQLITE_NOTADB. Extended ones carry theirs in the low byte.
    let code = source.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    let path: PathBuf = path.to_owned();
    match code.map(|code| code & 0xff) {
        Some(11) => StoreError::Corrupt { path, message: source.to_string() },
        Some(26) => StoreError::Corrupt { path, message: "it is no SQLite database".to_owned() },
        _ => StoreError::Open { path, source: source.into() },
    }
}

fn query(attempted: &'static str, source: sqlx::Error) -> StoreError {
    StoreError::Query { attempted, source: source.into() }
}

/// SQLite names the columns of a violated constraint in its message, and nowhere else.
fn is_unique_violation(error: &sqlx::Error, column: &str) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_unique_violation() && error.message().ends_with(column))
}

#[cfg(test)]
mod tests;
