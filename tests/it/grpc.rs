//! The contract from outside: what a client sees, with the deterministic model.

use std::collections::HashMap;

use refrain::grpc::pb::{
    BatchLookupRequest, DeleteEntryRequest, EmbedRequest, EntrySelector, GetCacheStatsRequest, GetEntryRequest,
    GetServerInfoRequest, InvalidateEntriesRequest, ListEntriesRequest, LookupRequest, MissReason, Outcome, Prompt,
    StoreRequest, Tier, batch_lookup_result, store_request::Expiration,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    redis_server::eventually,
    sidecar::{Sidecar, answer, ask, prompt},
};

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn blamed(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_missed_stored_and_hit_by_both_tiers() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;

    let receipt = cache.lookup(ask("a", "how do I reset my password")).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!((receipt.outcome(), receipt.miss_reason()), (Outcome::Miss, MissReason::Empty));
    assert!(!receipt.memoized);

    let stored = cache.store(answer("a", "how do I reset my password", "Click here.")).await.unwrap().into_inner();
    assert!(stored.created && !stored.exact_only);

    let hit = cache.lookup(ask("a", "  how do I reset my password\r\n")).await.unwrap().into_inner();
    let (entry, receipt) = (hit.entry.unwrap(), hit.receipt.unwrap());
    assert_eq!(entry.response, "Click here.");
    assert_eq!((receipt.tier(), receipt.similarity), (Tier::Exact, Some(1.0)));
    assert_eq!(receipt.entry_id, stored.entry_id);

    let request = LookupRequest { min_similarity: Some(-1.0), ..ask("a", "password reset") };
    let hit = cache.lookup(request).await.unwrap().into_inner();
    let receipt = hit.receipt.unwrap();
    assert_eq!((receipt.tier(), receipt.min_similarity), (Tier::Semantic, Some(-1.0)));
    assert_eq!(hit.entry.unwrap().response, "Click here.");
    assert!(receipt.timings.unwrap().total_us > 0);

    let missed = cache.lookup(LookupRequest { min_similarity: Some(1.0), ..ask("a", "password reset") }).await.unwrap();
    let receipt = missed.into_inner().receipt.unwrap();
    assert_eq!(receipt.miss_reason(), MissReason::BelowFloor);
    assert!(receipt.memoized, "the second lookup of a text finds its vector in the memo");
    assert_eq!(receipt.entry_id, stored.entry_id, "a miss names the nearest that was considered");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_agree_as_sets_in_both_tiers() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let with =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<HashMap<_, _>>();
    cache.store(StoreRequest { attributes: with(&[("model", "m|1")]), ..answer("a", "q", "r") }).await.unwrap();
    for (pairs, hit) in [
        (with(&[("model", "m|1")]), true),
        (with(&[]), false),
        (with(&[("model", "m|1"), ("x", "y")]), false),
        (with(&[("model", "m")]), false),
    ] {
        let request = LookupRequest { attributes: pairs.clone(), min_similarity: Some(-1.0), ..ask("a", "q") };
        let receipt = cache.lookup(request).await.unwrap().into_inner().receipt.unwrap();
        assert_eq!(receipt.outcome() == Outcome::Hit, hit, "{pairs:?}");
        if !hit {
            assert_eq!(receipt.miss_reason(), MissReason::Filtered, "{pairs:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_ends_with_its_life_and_max_age_is_honoured() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let ttl = Some(Expiration::Ttl(prost_types::Duration { seconds: 60, nanos: 0 }));
    cache.store(StoreRequest { expiration: ttl, ..answer("a", "q", "r") }).await.unwrap();
    sidecar.clock.advance(std::time::Duration::from_secs(30));
    let young = LookupRequest { max_age: Some(prost_types::Duration { seconds: 10, nanos: 0 }), ..ask("a", "q") };
    let receipt = cache.lookup(young).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(receipt.miss_reason(), MissReason::Expired);
    let receipt = cache.lookup(ask("a", "q")).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!((receipt.outcome(), receipt.age.unwrap().seconds), (Outcome::Hit, 30));
    sidecar.clock.advance(std::time::Duration::from_secs(31));
    let receipt = cache.lookup(ask("a", "q")).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(receipt.outcome(), Outcome::Miss);
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_and_bypass_are_the_callers_choice() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    cache.store(answer("a", "one two three", "r")).await.unwrap();
    let near = |tiers: Vec<i32>, bypass: bool| LookupRequest {
        tiers,
        bypass,
        min_similarity: Some(-1.0),
        ..ask("a", "one two")
    };
    let mut outcome = async |request| cache.lookup(request).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(outcome(near(vec![Tier::Exact.into()], false)).await.miss_reason(), MissReason::Bypassed);
    assert_eq!(outcome(near(vec![Tier::Semantic.into()], false)).await.tier(), Tier::Semantic);
    assert_eq!(outcome(near(vec![], true)).await.miss_reason(), MissReason::Bypassed);
    let same = LookupRequest { tiers: vec![Tier::Semantic.into()], ..ask("a", "one two three") };
    assert_eq!(outcome(same).await.tier(), Tier::Semantic, "the semantic tier alone finds the same prompt too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_longer_than_the_model_reads_is_matched_exactly_only() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let beginning = "same words at the start ".repeat(200);
    let stored = cache.store(answer("a", &format!("{beginning} one"), "1")).await.unwrap().into_inner();
    assert!(stored.exact_only);
    let other = LookupRequest { min_similarity: Some(-1.0), ..ask("a", &format!("{beginning} two")) };
    let receipt = cache.lookup(other).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(receipt.miss_reason(), MissReason::PartlyRead);
    let hit = cache.lookup(ask("a", &format!("{beginning} one"))).await.unwrap().into_inner();
    assert_eq!(hit.entry.unwrap().response, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_stands_twice_in_a_selector_is_one_entry() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let id = cache.store(answer("a", "q", "r")).await.unwrap().into_inner().entry_id;
    let selector = EntrySelector { entry_ids: vec![id.clone(), id.to_uppercase(), id], ..Default::default() };
    for dry_run in [true, false] {
        let selector = Some(selector.clone());
        let request = InvalidateEntriesRequest { namespace: "a".into(), selector, dry_run, ..Default::default() };
        assert_eq!(cache.invalidate_entries(request).await.unwrap().into_inner().count, 1, "dry run {dry_run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_with_words_outside_the_vocabulary_is_matched_exactly_only() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let stored = cache.store(answer("a", "what is \u{fffd}", "1")).await.unwrap().into_inner();
    assert!(stored.exact_only);
    let other = LookupRequest { min_similarity: Some(-1.0), ..ask("a", "what is \u{fffd}\u{fffd}") };
    let receipt = cache.lookup(other).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!(receipt.miss_reason(), MissReason::PartlyRead);
    assert!(cache.lookup(ask("a", "what is \u{fffd}")).await.unwrap().into_inner().entry.is_some());
}

/// A caller that takes one id for a whole trace must not lose what it was told is done.
#[tokio::test(flavor = "multi_thread")]
async fn one_request_id_for_two_requests_repeats_neither() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let mut ids = Vec::new();
    for text in ["one", "two"] {
        let store = StoreRequest { request_id: "trace".into(), category: text.into(), ..answer("a", text, text) };
        ids.push(cache.store(store).await.unwrap().into_inner().entry_id);
        assert!(cache.lookup(ask("a", text)).await.unwrap().into_inner().entry.is_some(), "{text}");
    }
    for entry_id in ids {
        let delete = DeleteEntryRequest { namespace: "a".into(), entry_id, request_id: "trace".into() };
        cache.delete_entry(delete).await.unwrap();
    }
    assert!(cache.lookup(ask("a", "two")).await.unwrap().into_inner().entry.is_none());
    for text in ["one", "two"] {
        cache.store(StoreRequest { category: text.into(), ..answer("a", text, text) }).await.unwrap();
    }
    for category in ["one", "two"] {
        let selector = Some(EntrySelector { category: category.into(), ..Default::default() });
        let request_id = "trace".to_owned();
        let request = InvalidateEntriesRequest { namespace: "a".into(), selector, request_id, ..Default::default() };
        assert_eq!(cache.invalidate_entries(request).await.unwrap().into_inner().count, 1, "{category}");
    }
}

/// Entries are as large as a response may be, and a page or a batch of them is larger than a message.
#[tokio::test(flavor = "multi_thread")]
async fn pages_and_batches_of_large_responses_fit_a_message() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let body = "x".repeat(1_000_000);
    for number in 0..6 {
        cache.store(answer("a", &format!("question {number}"), &body)).await.unwrap();
    }
    let (mut seen, mut page_token) = (0, String::new());
    loop {
        let page = ListEntriesRequest { namespace: "a".into(), page_token, ..Default::default() };
        let page = cache.list_entries(page).await.unwrap().into_inner();
        assert!(!page.entries.is_empty() && page.entries.iter().all(|entry| entry.response.len() == body.len()));
        (seen, page_token) = (seen + page.entries.len(), page.next_page_token);
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 6);

    let requests = (0..7).map(|number| ask("", &format!("question {number}"))).collect();
    let batch = cache.batch_lookup(BatchLookupRequest { namespace: "a".into(), requests }).await.unwrap().into_inner();
    let results: Vec<String> = batch
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            batch_lookup_result::Result::Response(found) => found.entry.map_or("miss", |_| "hit").to_owned(),
            batch_lookup_result::Result::Error(error) => error.reason,
        })
        .collect();
    let over = "ANSWER_TOO_LARGE";
    assert_eq!(results, ["hit", "hit", "hit", "hit", over, over, "miss"]);
}

/// The vector of a cut text is that of its beginning. Whoever embeds the text puts it into the memo,
/// from where a lookup must not take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_too_long_for_the_model_finds_no_neighbor_through_the_memo() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let beginning = "word ".repeat(254);
    cache.store(answer("a", &beginning, "of the beginning")).await.unwrap();
    let long = format!("{beginning}and do the opposite");
    let embed = EmbedRequest { namespace: "a".into(), texts: vec![long.clone()], ..EmbedRequest::default() };
    let embedded = sidecar.embedding().await.embed(embed).await.unwrap().into_inner();
    assert!(embedded.embeddings[0].truncated);
    let found = cache.lookup(ask("a", &long)).await.unwrap().into_inner();
    assert!(found.entry.is_none(), "the answer to the beginning is not the answer to all");
    assert_eq!(found.receipt.unwrap().miss_reason(), MissReason::PartlyRead);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_names_its_field_and_stores_nothing() {
    let sidecar =
        Sidecar::start(&["limits.prompt_bytes_max=100", "limits.response_bytes_max=100", "limits.attributes_max=2"])
            .await;
    let mut cache = sidecar.cache().await;
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let attributes = |key: &str| HashMap::from([(key.to_owned(), "v".to_owned())]);
    let good = || answer("a", "q", "r");
    let cases: Vec<(&str, StoreRequest)> = vec![
        ("namespace", StoreRequest { namespace: String::new(), ..good() }),
        ("namespace", StoreRequest { namespace: "a{b}".into(), ..good() }),
        ("namespace", StoreRequest { namespace: "n".repeat(65), ..good() }),
        ("prompt", StoreRequest { prompt: None, ..good() }),
        ("prompt", StoreRequest { prompt: Some(Prompt { kind: None }), ..good() }),
        ("prompt", StoreRequest { prompt: prompt(" \n\t"), ..good() }),
        ("prompt", StoreRequest { prompt: prompt(&"x".repeat(101)), ..good() }),
        ("response", StoreRequest { response: "".into(), ..good() }),
        ("response", StoreRequest { response: "x".repeat(101).into(), ..good() }),
        ("response", StoreRequest { response: vec![0xff, 0xfe].into(), ..good() }),
        ("content_type", StoreRequest { content_type: "text/\nplain".into(), ..good() }),
        ("attributes", StoreRequest { attributes: attributes("a|b"), ..good() }),
        ("attributes", StoreRequest { attributes: attributes(""), ..good() }),
        (
            "attributes",
            StoreRequest { attributes: (0..3).map(|i| (format!("k{i}"), String::new())).collect(), ..good() },
        ),
        ("category", StoreRequest { category: "a b".into(), ..good() }),
        ("ttl", StoreRequest { expiration: Some(Expiration::Ttl(seconds(-1))), ..good() }),
        ("ttl", StoreRequest { expiration: Some(Expiration::Ttl(seconds(0))), ..good() }),
        ("ttl", StoreRequest { expiration: Some(Expiration::Ttl(seconds(i64::MAX))), ..good() }),
        (
            "expire_time",
            StoreRequest {
                expiration: Some(Expiration::ExpireTime(prost_types::Timestamp { seconds: 1, nanos: 0 })),
                ..good()
            },
        ),
        (
            "expire_time",
            StoreRequest {
                expiration: Some(Expiration::ExpireTime(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })),
                ..good()
            },
        ),
        ("request_id", StoreRequest { request_id: "r".repeat(129), ..good() }),
        (
            "usage.cost_micros",
            StoreRequest {
                usage: Some(refrain::grpc::pb::Usage { cost_micros: u64::MAX, ..Default::default() }),
                ..good()
            },
        ),
        (
            "usage.latency",
            StoreRequest {
                usage: Some(refrain::grpc::pb::Usage { latency: Some(seconds(i64::MAX)), ..Default::default() }),
                ..good()
            },
        ),
        ("ttl", StoreRequest { expiration: Some(Expiration::Ttl(seconds(i64::MIN))), ..good() }),
    ];
    for (field, request) in cases {
        let status = cache.store(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::InvalidArgument, "INVALID_FIELD".into()),
            "{field}: {status}"
        );
        assert_eq!(blamed(&status), [field], "{status}");
    }
    for (field, request) in [
        ("min_similarity", LookupRequest { min_similarity: Some(1.5), ..ask("a", "q") }),
        ("min_similarity", LookupRequest { min_similarity: Some(f32::NAN), ..ask("a", "q") }),
        ("max_age", LookupRequest { max_age: Some(seconds(-1)), ..ask("a", "q") }),
        ("tiers", LookupRequest { tiers: vec![77], ..ask("a", "q") }),
    ] {
        assert_eq!(blamed(&cache.lookup(request).await.unwrap_err()), [field]);
    }
    for (field, selector) in [
        ("selector", None),
        ("selector", Some(EntrySelector::default())),
        ("selector.all", Some(EntrySelector { all: true, category: "c".into(), ..Default::default() })),
        ("selector.entry_ids[0]", Some(EntrySelector { entry_ids: vec!["zz".into()], ..Default::default() })),
    ] {
        let request = InvalidateEntriesRequest { namespace: "a".into(), selector, ..Default::default() };
        assert_eq!(blamed(&cache.invalidate_entries(request).await.unwrap_err()), [field]);
    }
    let listing =
        cache.list_entries(ListEntriesRequest { namespace: "a".into(), page_token: "x".into(), ..Default::default() });
    assert_eq!(blamed(&listing.await.unwrap_err()), ["page_token"]);
    let listing = cache.list_entries(ListEntriesRequest { namespace: "a".into(), ..Default::default() });
    assert!(listing.await.unwrap().into_inner().entries.is_empty(), "nothing half-written stays");

    let mut embedding = sidecar.embedding().await;
    for texts in [vec![], vec!["good".to_owned(), String::new()]] {
        let request = EmbedRequest { namespace: "a".into(), texts, ..Default::default() };
        let status = embedding.embed(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(blamed(&status)[0].starts_with("texts"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_item_of_a_batch_fails_alone() {
    let sidecar = Sidecar::start(&["limits.batch_max=3"]).await;
    let mut cache = sidecar.cache().await;
    cache.store(answer("a", "q", "r")).await.unwrap();
    let request =
        BatchLookupRequest { namespace: "a".into(), requests: vec![ask("", "q"), ask("a", ""), ask("b", "q")] };
    let results = cache.batch_lookup(request).await.unwrap().into_inner().results;
    let results: Vec<_> = results.into_iter().map(|result| result.result.unwrap()).collect();
    assert!(matches!(&results[0], batch_lookup_result::Result::Response(found) if found.entry.is_some()));
    for (at, field) in [(1, "requests[1].prompt"), (2, "requests[2].namespace")] {
        let batch_lookup_result::Result::Error(error) = &results[at] else { panic!("item {at} must fail") };
        assert_eq!((error.code, error.field.as_str()), (Code::InvalidArgument.into(), field));
    }
    for count in [0, 4] {
        let requests = vec![ask("", "q"); count];
        let status = cache.batch_lookup(BatchLookupRequest { namespace: "a".into(), requests }).await.unwrap_err();
        assert_eq!(blamed(&status), ["requests"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_read_listed_deleted_and_invalidated() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    for i in 0..10 {
        let category = if i < 4 { "low" } else { "high" };
        let attributes = HashMap::from([("parity".to_owned(), (i % 2).to_string())]);
        cache
            .store(StoreRequest { category: category.into(), attributes, ..answer("a", &format!("question {i}"), "r") })
            .await
            .unwrap();
    }
    let (mut token, mut ids, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let request =
            ListEntriesRequest { namespace: "a".into(), page_size: 3, page_token: token, omit_responses: pages == 1 };
        let page = cache.list_entries(request).await.unwrap().into_inner();
        assert!(page.entries.iter().all(|entry| entry.response.is_empty() == (pages == 1)));
        ids.extend(page.entries.into_iter().map(|entry| entry.id));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), pages), (10, 4));

    let id = ids[0].clone();
    let named = GetEntryRequest { namespace: "a".into(), entry_id: id.clone() };
    assert_eq!(cache.get_entry(named.clone()).await.unwrap().into_inner().entry.unwrap().id, id);
    let deletion = DeleteEntryRequest { namespace: "a".into(), entry_id: id, request_id: "d1".into() };
    cache.delete_entry(deletion.clone()).await.unwrap();
    cache.delete_entry(deletion.clone()).await.expect("the same request is harmless");
    let again = cache.delete_entry(DeleteEntryRequest { request_id: String::new(), ..deletion }).await.unwrap_err();
    assert_eq!((again.code(), reason(&again)), (Code::NotFound, "ENTRY_NOT_FOUND".into()));
    assert_eq!(cache.get_entry(named).await.unwrap_err().code(), Code::NotFound);

    let mut invalidate = async |selector: EntrySelector, dry_run: bool| {
        let request =
            InvalidateEntriesRequest { namespace: "a".into(), selector: Some(selector), dry_run, ..Default::default() };
        cache.invalidate_entries(request).await.unwrap().into_inner().count
    };
    let low = EntrySelector { category: "low".into(), ..Default::default() };
    let counted = invalidate(low.clone(), true).await;
    assert!(counted == 3 || counted == 4, "one of the ten was deleted");
    assert_eq!(invalidate(low.clone(), false).await, counted);
    assert_eq!(invalidate(low, false).await, 0);
    let odd = EntrySelector { attributes: HashMap::from([("parity".into(), "1".into())]), ..Default::default() };
    let odd_count = invalidate(odd.clone(), true).await;
    assert!((2..=3).contains(&odd_count));
    let old = EntrySelector { older_than: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..odd };
    assert_eq!(invalidate(old.clone(), false).await, 0);
    sidecar.clock.advance(std::time::Duration::from_secs(61));
    assert_eq!(invalidate(old, false).await, odd_count);
    let named = EntrySelector { prompt: prompt("question 8"), entry_ids: ids.clone(), ..Default::default() };
    let by_prompt = EntrySelector { prompt: prompt("question 8"), ..Default::default() };
    let count = invalidate(by_prompt, true).await;
    assert_eq!(invalidate(named, false).await, count);
    let all = EntrySelector { all: true, ..Default::default() };
    let left = invalidate(all.clone(), true).await;
    assert_eq!(invalidate(all.clone(), false).await, left);
    assert_eq!(invalidate(all, true).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_add_up() {
    let sidecar = Sidecar::start(&[]).await;
    let mut cache = sidecar.cache().await;
    let usage = refrain::grpc::pb::Usage {
        input_tokens: 10,
        output_tokens: 20,
        cost_micros: 7,
        latency: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
    };
    cache.lookup(ask("a", "q")).await.unwrap();
    cache.store(StoreRequest { usage: Some(usage), ..answer("a", "q", "r") }).await.unwrap();
    for _ in 0..3 {
        cache.lookup(ask("a", "q")).await.unwrap();
    }
    let request = GetCacheStatsRequest { namespace: "a".into() };
    let stats = eventually("the counters arrive", || {
        let (mut cache, request) = (cache.clone(), request.clone());
        async move {
            let stats = cache.get_cache_stats(request).await.unwrap().into_inner();
            (stats.lookups == 4).then_some(stats)
        }
    })
    .await;
    assert_eq!((stats.entries, stats.exact_hits, stats.semantic_hits, stats.misses, stats.stores), (1, 3, 0, 1, 1));
    assert_eq!(stats.misses_by_reason, HashMap::from([("empty".to_owned(), 1)]));
    let saved = stats.saved.unwrap();
    assert_eq!(
        (saved.input_tokens, saved.output_tokens, saved.cost_micros, saved.latency.unwrap().seconds),
        (30, 60, 21, 6)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_describes_itself() {
    let sidecar = Sidecar::start(&[]).await;
    let info = sidecar.admin().await.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.engine.as_str(), info.version.as_str()), ("embedded", env!("CARGO_PKG_VERSION")));
    assert_eq!(info.model.unwrap().space.len(), 16);
    assert!(!info.engine_details.is_empty());
}
