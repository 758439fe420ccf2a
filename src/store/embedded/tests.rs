//! What the ports cannot show: the file, the sweep, the queues, the threads.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    store::{Detail, Entry, NearestQuery, NewEntry, Usage},
    types::{Attributes, EntryId, Prompt, Vector},
};

const HOUR: Duration = Duration::from_hours(1);

fn number(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn settings() -> Settings {
    Settings {
        readers: 1,
        queue_length_max: number(1_000),
        write_batch_rows_max: number(64),
        sweep_interval: Duration::from_millis(2),
        sweep_rows_max: number(7),
        durability: Durability::ProcessCrash,
        cache_kib: NonZeroU32::new(512).unwrap(),
    }
}

fn space() -> (SpaceId, usize) {
    (SpaceId::derive(&[b"test"]), 2)
}

fn namespace() -> Namespace {
    Namespace::new("test").unwrap()
}

fn open_with(dir: &Path, settings: Settings, clock: &Clock) -> Arc<Embedded> {
    Arc::new(Embedded::open(dir, settings, Some(space()), clock.clone()).unwrap())
}

fn engine(embedded: &Arc<Embedded>) -> Engine {
    Engine {
        name: NAME,
        cache: Arc::clone(embedded) as _,
        memo: Arc::clone(embedded) as _,
        health: Arc::clone(embedded) as _,
    }
}

fn new_entry(clock: &Clock, text: &str, ttl: Duration) -> NewEntry {
    let prompt = Prompt::stored(text);
    let created = clock.now();
    let entry = Entry {
        id: EntryId::derive(&prompt, &Attributes::default()),
        prompt,
        attributes: Attributes::default(),
        category: None,
        response: "answer".into(),
        content_type: "text/plain".to_owned(),
        usage: Usage::default(),
        created,
        expires: created.plus(ttl),
    };
    NewEntry { entry, vector: Some((space().0, Vector::new(vec![1.0, text.len() as f32]).unwrap())) }
}

/// Rows of a table, as the file has them.
async fn rows(embedded: &Embedded, table: &'static str) -> u64 {
    embedded
        .read("count_rows", None, move |connection| {
            connection
                .query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get::<_, i64>(0))
                .map_err(|e| failure::sql("count_rows", &e))
        })
        .await
        .unwrap() as u64
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let holding = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holding).await.unwrap_or_else(|_| panic!("never {what}"));
}

/// Keeps the only reader busy until told otherwise.
fn block_reader(embedded: &Embedded) -> std::sync::mpsc::SyncSender<()> {
    let (release, blocked) = std::sync::mpsc::sync_channel::<()>(0);
    let (entered, entry) = std::sync::mpsc::sync_channel(0);
    let job: Job = Box::new(move |_| {
        entered.send(()).unwrap();
        let _ = blocked.recv();
    });
    embedded.read_queue.push(job).unwrap();
    entry.recv().unwrap();
    release
}

#[tokio::test]
async fn expired_and_emptied_rows_are_swept() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let engine = engine(&embedded);
    for number in 0..40 {
        let ttl = if number < 20 { HOUR } else { HOUR * 2 };
        engine.cache.put(&namespace(), new_entry(&clock, &"x".repeat(number + 1), ttl), None).await.unwrap();
    }
    let request = RequestId("r".into());
    let memo = (crate::store::MemoKey([0; 32]), Vector::new(vec![1.0]).unwrap());
    engine.memo.write(&namespace(), &[memo], HOUR).await.unwrap();
    engine.cache.delete(&namespace(), &[], Some(&request)).await.unwrap();
    assert_eq!((rows(&embedded, "entries").await, rows(&embedded, "requests").await), (40, 1));

    clock.advance(HOUR + Duration::from_secs(1));
    assert_eq!(engine.cache.count(&namespace()).await.unwrap(), 20, "before the sweep as after it");
    eventually("swept", async || rows(&embedded, "entries").await == 20 && embedded.vectors.held() == 20).await;
    eventually("swept", async || rows(&embedded, "memos").await + rows(&embedded, "requests").await == 0).await;
    assert_eq!(engine.cache.count(&namespace()).await.unwrap(), 20);

    assert_eq!(engine.cache.empty(&namespace(), None).await.unwrap(), 20);
    assert_eq!(embedded.vectors.held(), 0);
    engine.cache.put(&namespace(), new_entry(&clock, "new", HOUR), None).await.unwrap();
    eventually("swept", async || rows(&embedded, "entries").await == 1 && rows(&embedded, "epochs").await == 1).await;
    assert_eq!((engine.cache.count(&namespace()).await.unwrap(), embedded.vectors.held()), (1, 1));
    engine.health.close().await;
}

#[test]
fn a_sweep_leaves_the_writer_its_time() {
    let (took, interval) = (Duration::from_millis(10), Duration::from_mins(1));
    let pause = |rows, more| sweep::pause(&sweep::Swept { rows, more }, took, interval);
    assert_eq!(pause(7, true), Duration::from_millis(30));
    assert_eq!(pause(3, false), interval);
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), Settings { queue_length_max: number(1), ..settings() }, &clock);
    let engine = engine(&embedded);
    let release = block_reader(&embedded);
    let waiting = tokio::spawn({
        let (engine, id) = (engine.clone(), new_entry(&clock, "a", HOUR).entry.id);
        async move { engine.cache.probe(&namespace(), &id, None, None).await }
    });
    let mut refused = None;
    eventually("refused", async || {
        // A deadline, because until the other is queued this one may be.
        let soon = Some(clock.deadline_in(Duration::from_millis(1)));
        refused = engine.memo.read(&namespace(), &[], soon).await.err();
        matches!(refused, Some(Error::Overloaded { .. }))
    })
    .await;
    assert!(matches!(refused, Some(Error::Overloaded { waiting: 1, .. })), "{refused:?}");
    drop(release);
    // Refused or served, but answered.
    let _ = waiting.await.unwrap();
    eventually("served", async || engine.memo.read(&namespace(), &[], None).await.is_ok()).await;
    engine.health.close().await;
}

#[tokio::test]
async fn waiting_past_the_deadline_is_a_timeout() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let release = block_reader(&embedded);
    let deadline = Some(clock.deadline_in(Duration::from_millis(5)));
    let id = new_entry(&clock, "a", HOUR).entry.id;
    let answer = engine(&embedded).cache.probe(&namespace(), &id, None, deadline).await;
    assert!(matches!(answer, Err(Error::Timeout { operation: "probe", .. })), "{answer:?}");
    drop(release);
    embedded.shut_down().await;
}

#[tokio::test]
async fn a_read_that_panics_costs_one_answer() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let answer = embedded.read::<()>("probe", None, |_| panic!("on purpose")).await;
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    engine(&embedded).health.check().await.unwrap();
    embedded.shut_down().await;
}

#[tokio::test]
async fn a_closed_engine_is_unavailable() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let engine = engine(&embedded);
    engine.health.close().await;
    engine.health.close().await;
    let put = engine.cache.put(&namespace(), new_entry(&clock, "a", HOUR), None).await;
    assert!(matches!(put, Err(Error::Unavailable { .. })), "{put:?}");
    let count = engine.cache.count(&namespace()).await;
    assert!(matches!(count, Err(Error::Unavailable { .. })), "{count:?}");
    let check = engine.health.check().await;
    assert!(matches!(check, Err(Error::Unavailable { .. })), "{check:?}");
    // Closed means that the directory is free.
    open_with(dir.path(), settings(), &clock).shut_down().await;
}

#[tokio::test]
async fn closing_finishes_what_waits() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let engine = engine(&embedded);
    let puts: Vec<_> = (0..200)
        .map(|number| {
            let (engine, new) = (engine.clone(), new_entry(&clock, &number.to_string(), HOUR));
            tokio::spawn(async move { engine.cache.put(&namespace(), new, None).await.is_ok() })
        })
        .collect();
    tokio::task::yield_now().await;
    engine.health.close().await;
    let mut acknowledged = 0;
    for put in puts {
        acknowledged += u64::from(put.await.unwrap());
    }
    let again = open_with(dir.path(), settings(), &clock);
    assert_eq!(rows(&again, "entries").await, acknowledged);
    again.shut_down().await;
}

#[tokio::test]
async fn an_abandoned_write_that_has_not_begun_leaves_nothing() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    let (reply, answer) = oneshot::channel();
    drop(answer);
    let verb = Verb::Put(Box::new(new_entry(&clock, "abandoned", HOUR)));
    embedded.write_queue.push(Command { namespace: namespace(), verb, request: None, reply }).unwrap();
    engine(&embedded).health.check().await.unwrap();
    assert_eq!(rows(&embedded, "entries").await, 0);
    embedded.shut_down().await;
}

#[tokio::test]
async fn a_failing_verb_takes_no_other_with_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let embedded = open_with(dir.path(), settings(), &clock);
    embedded.shut_down().await;
    let file = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    file.execute_batch(
        "CREATE TRIGGER refuse BEFORE INSERT ON entries WHEN NEW.prompt = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'refused on purpose'); END",
    )
    .unwrap();
    let embedded = open_with(dir.path(), settings(), &clock);
    let engine = engine(&embedded);
    // The writer waits for the file with the first, so that the others make one batch.
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let put = async |text| engine.cache.put(&namespace(), new_entry(&clock, text, HOUR), None).await;
    let unblock = async {
        tokio::task::yield_now().await;
        file.execute_batch("ROLLBACK").unwrap();
    };
    let (first, good, bad, also_good, ()) =
        tokio::join!(put("first"), put("good"), put("bad"), put("also good"), unblock);
    assert!(first.is_ok() && good.is_ok() && also_good.is_ok());
    assert!(bad.unwrap_err().to_string().contains("refused on purpose"));
    let (namespace, vector) = (namespace(), Vector::new(vec![1.0, 1.0]).unwrap());
    let query = NearestQuery {
        namespace: &namespace,
        space: space().0,
        vector: &vector,
        attributes: &Attributes::default(),
        count: 8,
        deadline: None,
    };
    let nearest = engine.cache.nearest(query).await.unwrap();
    assert_eq!((nearest.candidates.len(), nearest.population), (3, 3), "memory shows what was committed");
    engine.health.close().await;
}

fn open_error(dir: &Path) -> Error {
    match Embedded::open(dir, settings(), Some(space()), Clock::system()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn two_engines_never_share_a_directory() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::shifted());
    let first = open_with(dir.path(), settings(), &clock);
    let refusal = open_error(dir.path());
    assert!(refusal.to_string().contains(&format!("process {}", std::process::id())), "{refusal}");
    first.shut_down().await;
}

#[test]
fn damaged_foreign_and_newer_files_are_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    std::fs::write(&path, "this is no database, however long it may be. ".repeat(100)).unwrap();
    let error = open_error(dir.path());
    assert!(matches!(&error, Error::Corrupt { .. }) && error.to_string().contains("move"), "{error}");

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let error = open_error(dir.path());
    assert!(matches!(&error, Error::SchemaMismatch { .. }) && error.to_string().contains("another program"), "{error}");

    std::fs::remove_file(&path).unwrap();
    drop(schema::open_writer(&path, &settings()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = open_error(dir.path());
    assert!(matches!(&error, Error::SchemaMismatch { .. }) && error.to_string().contains("99"), "{error}");
}

#[test]
fn migrations_lead_from_nothing_to_now_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    for _ in 0..2 {
        let file = schema::open_writer(&path, &settings()).unwrap();
        let version: i64 = file.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 1);
        file.prepare("SELECT epoch, id, vector FROM entries").unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A file cut short or scribbled on opens or is refused; it never takes the process down.
    #[test]
    fn a_damaged_file_never_panics(at in 0_usize..20_000, byte: u8, cut: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let file = schema::open_writer(&path, &settings()).unwrap();
        file.execute_batch("INSERT INTO epochs (namespace) VALUES ('a')").unwrap();
        drop(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at % bytes.len();
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= byte;
        }
        std::fs::write(&path, bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let clock = Clock::shifted();
        if let Ok(embedded) = Embedded::open(dir.path(), settings(), Some(space()), clock.clone()) {
            let embedded = Arc::new(embedded);
            let engine = engine(&embedded);
            runtime.block_on(async {
                let _ = engine.cache.put(&namespace(), new_entry(&clock, "a", HOUR), None).await;
                let _ = engine.cache.list(&namespace(), None, 10, Detail::Whole).await;
                engine.health.close().await;
            });
        }
    }
}
