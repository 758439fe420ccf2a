//! `kill -9` in the middle of writing: whatever was acknowledged is there afterwards.
//!
//! The test binary runs itself as the process to be killed.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures::future::join_all;
use refrain::{
    clock::Clock,
    store::{Engine, Entry, NearestQuery, NewEntry},
    types::{Attributes, EntryId, Namespace, Prompt, Vector},
};

use crate::{
    data::{clustered, space},
    embedded_dir,
};

const DIR: &str = "REFRAIN_TEST_CRASH_DIR";
const ROUND: &str = "REFRAIN_TEST_CRASH_ROUND";
const ROUNDS: u64 = 8;
/// More than any round acknowledges before it is killed.
const ENTRIES_MAX: usize = 4_096;
/// Writes under way at a time, so that a kill meets commits of several.
const TOGETHER: usize = 6;

/// What a child says, one line each, once it was acknowledged.
#[derive(Default)]
struct Acknowledged {
    stored: BTreeSet<usize>,
    /// A deletion is announced before it begins, since it may happen unacknowledged.
    maybe_deleted: BTreeSet<usize>,
    deleted: BTreeSet<usize>,
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut rounds: Vec<(Vec<Vector>, Acknowledged)> = Vec::new();
    for round in 0..ROUNDS {
        let path = dir.path().to_owned();
        // Early kills meet an empty file, a growing log, a first checkpoint; late ones a second.
        let acknowledged = tokio::task::spawn_blocking(move || run_and_kill(&path, round, 5 + 60 * round as usize));
        rounds.push((clustered(round, ENTRIES_MAX), acknowledged.await.unwrap()));
        let engine = embedded_dir::open(dir.path(), Clock::system()).await;
        for (number, (vectors, acknowledged)) in rounds.iter().enumerate() {
            assert_kept(&engine, number as u64, vectors, acknowledged).await;
        }
        let counted = engine.cache.counters(&namespace()).await.unwrap();
        let stored: usize = rounds.iter().map(|(_, acknowledged)| acknowledged.stored.len()).sum();
        assert!(counted[0].1 >= stored as u64, "{counted:?} counted, {stored} acknowledged");
        engine.health.close().await;
        assert_sound(dir.path());
    }
}

/// The process to be killed; as an ordinary test it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn writer_child() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    let engine = embedded_dir::open(Path::new(&dir), Clock::system()).await;
    let vectors = clustered(round, ENTRIES_MAX);
    let lanes = (0..TOGETHER).map(|lane| write_lane(&engine, round, &vectors, lane));
    join_all(lanes).await;
}

async fn write_lane(engine: &Engine, round: u64, vectors: &[Vector], lane: usize) {
    for number in (lane..ENTRIES_MAX).step_by(TOGETHER) {
        let new = NewEntry { entry: entry(round, number), vector: Some((space(), vectors[number].clone())) };
        engine.cache.add_counters(&namespace(), &[("stored".to_owned(), 1)]).await.unwrap();
        engine.cache.put(&namespace(), new, None).await.unwrap();
        say("stored", number);
        if number % 5 == 0 {
            say("deleting", number);
            engine.cache.delete(&namespace(), &[entry(round, number).id], None).await.unwrap();
            say("deleted", number);
        }
    }
}

fn say(what: &str, number: usize) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{what} {number}").and_then(|()| out.flush()).expect("the parent listens");
}

fn run_and_kill(dir: &Path, round: u64, acknowledged_min: usize) -> Acknowledged {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::writer_child", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let heard = listen(&mut child, acknowledged_min);
    let _ = child.kill();
    child.wait().unwrap();
    heard
}

/// Kills the child once enough was acknowledged, and hears out what the pipe still holds.
fn listen(child: &mut Child, acknowledged_min: usize) -> Acknowledged {
    let mut heard = Acknowledged::default();
    let out = BufReader::new(child.stdout.take().expect("the pipe was asked for"));
    for line in out.lines() {
        let line = line.unwrap();
        let Some((what, number)) = line.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "stored" => heard.stored.insert(number),
            "deleting" => heard.maybe_deleted.insert(number),
            "deleted" => heard.deleted.insert(number),
            _ => continue,
        };
        if heard.stored.len() == acknowledged_min {
            child.kill().unwrap();
        }
    }
    assert!(heard.stored.len() >= acknowledged_min, "the child ended early, after {}", heard.stored.len());
    heard
}

async fn assert_kept(engine: &Engine, round: u64, vectors: &[Vector], acknowledged: &Acknowledged) {
    for &number in &acknowledged.stored {
        let expected = entry(round, number);
        let found = engine.cache.probe(&namespace(), &expected.id, None, None).await.unwrap().entry;
        let nearest = nearest(engine, &vectors[number]).await;
        if acknowledged.deleted.contains(&number) {
            assert_eq!(found, None, "{number} of round {round} was deleted");
            assert_ne!(nearest, Some(expected.id));
        } else if found.is_some() || !acknowledged.maybe_deleted.contains(&number) {
            assert_eq!(found.as_ref(), Some(&expected), "{number} of round {round} was acknowledged");
            assert_eq!(nearest, Some(expected.id), "{number} of round {round} is found by its vector");
        }
    }
}

async fn nearest(engine: &Engine, vector: &Vector) -> Option<EntryId> {
    let query = NearestQuery {
        namespace: &namespace(),
        space: space(),
        vector,
        attributes: &Attributes::default(),
        count: 1,
        deadline: None,
    };
    engine.cache.nearest(query).await.unwrap().candidates.first().map(|candidate| candidate.id)
}

fn assert_sound(dir: &Path) {
    let file = rusqlite::Connection::open(dir.join("refrain.sqlite")).unwrap();
    let verdict: String = file.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

fn namespace() -> Namespace {
    Namespace::new("crash").unwrap()
}

/// The same in parent and child.
fn entry(round: u64, number: usize) -> Entry {
    let prompt = Prompt::new(&format!("question {number} of round {round}"), 1_000).unwrap();
    let created = refrain::types::Timestamp(1_800_000_000_000 + number as i64);
    Entry {
        id: EntryId::derive(&prompt, &Attributes::default()),
        response: format!("answer {number} ").repeat(1 + number % 700).into(),
        prompt,
        attributes: Attributes::default(),
        category: None,
        content_type: "text/plain".to_owned(),
        usage: refrain::store::Usage::default(),
        created,
        expires: created.plus(Duration::from_hours(24 * 36_500)),
    }
}
