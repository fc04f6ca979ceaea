//! What only a file can do: last, be private, be damaged, be newer.

use tempfile::TempDir;

use super::*;
use crate::store::suite;

async fn in_a_file() -> Held {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open_file(&dir.path().join("store.db")).await.unwrap();
    Held { store, _dir: dir }
}

/// A store with the directory that it needs.
#[derive(Debug)]
struct Held {
    store: SqliteStore,
    _dir: TempDir,
}

impl std::ops::Deref for Held {
    type Target = SqliteStore;

    fn deref(&self) -> &SqliteStore {
        &self.store
    }
}

mod file {
    use super::*;

    macro_rules! through_the_file {
        ($($name:ident)*) => { $(
            #[tokio::test]
            async fn $name() {
                let held = in_a_file().await;
                suite::$name(&*held).await;
            }
        )* };
    }

    // Those of the suite in which several connections meet.
    through_the_file! {
        the_second_of_two_writers_is_told
        epochs_only_rise
        a_listing_goes_on_where_it_stopped
        an_exec_is_admitted_once
        the_first_outcome_stays
        a_start_belongs_to_the_instance_it_was_first_sent_to
        a_deleted_sandbox_takes_its_running_execs_along
        ended_execs_are_forgotten_in_time
    }
}

mod memory {
    use super::*;

    suite::store_tests!(async { SqliteStore::open("sqlite::memory:").await.unwrap() });
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let url = format!("sqlite:{}", dir.path().join("store.db").display());
    let record = suite::sandbox("dev");
    let store = SqliteStore::open(&url).await.unwrap();
    store.insert(&record).await.unwrap();
    store.next_epoch(record.id).await.unwrap();
    let exec = suite::exec(record.id);
    store.admit(&exec).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(&url).await.unwrap();
    assert_eq!(store.next_epoch(record.id).await.unwrap(), Epoch(2));
    assert_eq!(store.unfinished(record.id).await.unwrap(), [exec]);
}

#[tokio::test]
async fn the_file_is_private_even_if_it_was_not() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open_file(&path).await.unwrap();
    store.insert(&suite::sandbox("dev")).await.unwrap();
    let mut files = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        files += 1;
    }
    assert_eq!(files, 3, "the file, its log and the log's index");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_left_alone_and_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notes.txt");
    let text = "shopping list\n".repeat(100);
    fs::write(&path, &text).unwrap();
    let error = SqliteStore::open_file(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("notes.txt is damaged: it is no SQLite database"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("other.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE bookmark (url TEXT)").execute(&pool).await.unwrap();
    pool.close().await;
    let error = SqliteStore::open_file(&path).await.unwrap_err();
    assert!(error.to_string().contains("another program's database"), "{error}");
}

#[tokio::test]
async fn a_damaged_page_is_noticed_at_the_start() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteStore::open_file(&path).await.unwrap();
    for i in 0..200 {
        store.insert(&suite::sandbox(&format!("box-{i}"))).await.unwrap();
    }
    // Closing the last connection folds the log into the file.
    store.close().await;
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len() - 4096;
    bytes[4096..end].iter_mut().skip(16).step_by(64).for_each(|byte| *byte ^= 0xff);
    fs::write(&path, &bytes).unwrap();
    let error = SqliteStore::open_file(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_told_from_damage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let store = SqliteStore::open_file(&path).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of tomorrow', TRUE, x'00', 0)",
    )
    .execute(&store.writer)
    .await
    .unwrap();
    store.close().await;
    let error = SqliteStore::open_file(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 9999, .. }), "{error:?}");
    assert!(error.to_string().contains("use the newer gateway again"), "{error}");
}

#[test]
fn every_migration_file_is_in_the_list() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let listed: Vec<_> = MIGRATIONS
        .iter()
        .map(|one| {
            (
                format!("{:04}_{}.sql", one.version, one.description.replace(' ', "_")),
                one.sql.as_str().to_owned(),
            )
        })
        .collect();
    let there: Vec<_> = files
        .iter()
        .map(|file| {
            (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(file).unwrap())
        })
        .collect();
    assert_eq!(listed, there);
}

#[tokio::test]
async fn a_url_that_names_no_store_says_what_would() {
    for (url, says) in [
        ("postgres://db/holdfast", "only sqlite:PATH"),
        ("sqlite:", "names no file"),
        ("sqlite:/tmp/x.db?mode=ro", "parameters are not taken"),
    ] {
        let error = SqliteStore::open(url).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let dir = TempDir::new().unwrap();
    let error = SqliteStore::open_file(&dir.path().join("missing/store.db")).await.unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    let error = SqliteStore::open_file(dir.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
}

#[tokio::test]
async fn more_ended_execs_than_are_kept_are_forgotten_oldest_first() {
    let store = SqliteStore::open("sqlite::memory:").await.unwrap();
    let home = suite::sandbox("dev");
    store.insert(&home).await.unwrap();
    let running = suite::exec(home.id);
    store.admit(&running).await.unwrap();
    sqlx::query(
        "WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) \
         INSERT INTO exec SELECT randomblob(16), sandbox, spec_digest, CAST(i AS TEXT), tty, on_disconnect, \
         retain_ms, accepted_at, start_deadline_at, instance, generation, epoch, pid, started_at, x'', i, \
         9000000000000000000, 0, 0, 0 FROM n, exec WHERE outcome IS NULL",
    )
    .bind(int(MAX_ENDED_EXECS as u64 + 3))
    .execute(&store.writer)
    .await
    .unwrap();
    assert_eq!(store.forget_before(Timestamp::UNIX_EPOCH).await.unwrap(), 3);
    let oldest: String =
        sqlx::query_scalar("SELECT command FROM exec WHERE outcome IS NOT NULL ORDER BY ended_at LIMIT 1")
            .fetch_one(&store.writer)
            .await
            .unwrap();
    assert_eq!(oldest, "3");
    assert_eq!(store.unfinished(home.id).await.unwrap(), [running]);
}

/// On a full disk SQLite rolls back by itself, and sqlx counts the transaction as open. The store must work again once
/// there is room.
#[tokio::test]
async fn a_transaction_that_the_database_rolled_back_leaves_no_trace() {
    let store = in_a_file().await;
    let record = suite::sandbox("dev");
    store.insert(&record).await.unwrap();
    for pool in [&store.quick, &store.writer] {
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("ROLLBACK").execute(&mut *transaction).await.unwrap();
        drop(transaction);
    }
    store.admit(&suite::exec(record.id)).await.unwrap();
    store.ping().await.unwrap();
    assert!(store.delete(record.id, Timestamp::now()).await.unwrap());
}
