//! CacheService.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::{
    convert, page_token,
    pb::{self, batch_lookup_result, cache_service_server::CacheService},
    status::{item_error, status},
};
use crate::{cache::Cache, config::Limits, error::Invalid, store::Detail, types::Namespace};

/// What a miss or an error of a batch takes of its message at most.
const ACCOUNT_BYTES_MAX: usize = 512;

/// The semantic cache over gRPC.
pub struct CacheApi {
    cache: Cache,
    limits: Arc<Limits>,
    message_bytes_max: usize,
}

impl CacheApi {
    /// Serves `cache` within `limits`, in messages of at most `message_bytes_max`.
    pub fn new(cache: Cache, limits: Arc<Limits>, message_bytes_max: usize) -> Self {
        Self { cache, limits, message_bytes_max }
    }

    /// The batch's own namespace holds for all; a question may repeat it and must not name another.
    fn batch_namespace_rule(at: usize, asked: &str, namespace: &Namespace) -> Result<(), Invalid> {
        if asked.is_empty() || asked == namespace.as_str() {
            return Ok(());
        }
        Err(Invalid::new(
            format!("requests[{at}].namespace"),
            "is another than the batch's; send it in a batch of its own",
        ))
    }
}

/// A hit that has no room in the message left, beside the answers before it.
fn too_large_beside_others() -> pb::ItemError {
    pb::ItemError {
        code: Code::OutOfRange.into(),
        reason: "ANSWER_TOO_LARGE".to_owned(),
        message: "the answers of the batch do not fit one message; ask for this one alone".to_owned(),
        field: String::new(),
    }
}

#[tonic::async_trait]
impl CacheService for CacheApi {
    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Result<Response<pb::LookupResponse>, Status> {
        let deadline = convert::deadline(&request);
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let ask = convert::ask(request, &self.limits).map_err(|e| status(&e))?;
        let answer = self.cache.lookup(&namespace, ask, deadline).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::answer_to_pb(answer)))
    }

    async fn batch_lookup(
        &self,
        request: Request<pb::BatchLookupRequest>,
    ) -> Result<Response<pb::BatchLookupResponse>, Status> {
        let deadline = convert::deadline(&request);
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        if request.requests.is_empty() || request.requests.len() > self.limits.batch_max {
            let problem = format!(
                "holds {} questions; 1 to {} are allowed (limits.batch_max)",
                request.requests.len(),
                self.limits.batch_max
            );
            return Err(status(&Invalid::new("requests", problem)));
        }
        let asks = request.requests.into_iter().enumerate().map(|(at, lookup)| {
            Self::batch_namespace_rule(at, &lookup.namespace, &namespace)?;
            convert::ask(lookup, &self.limits).map_err(|e| e.within(format_args!("requests[{at}]")))
        });
        let answers = self.cache.lookup_batch(&namespace, asks.collect(), deadline).await;
        // Whatever becomes of a question, there is room to say so.
        let said = answers.len() * ACCOUNT_BYTES_MAX;
        let mut room = convert::Room::new(self.message_bytes_max.saturating_sub(said));
        let results = answers.into_iter().map(|answer| pb::BatchLookupResult {
            result: Some(match answer.map(convert::answer_to_pb) {
                Ok(answer) if answer.entry.is_some() && !room.take(&answer) => {
                    batch_lookup_result::Result::Error(too_large_beside_others())
                }
                Ok(answer) => batch_lookup_result::Result::Response(answer),
                Err(error) => batch_lookup_result::Result::Error(item_error(&error)),
            }),
        });
        Ok(Response::new(pb::BatchLookupResponse { results: results.collect() }))
    }

    async fn store(&self, request: Request<pb::StoreRequest>) -> Result<Response<pb::StoreResponse>, Status> {
        let deadline = convert::deadline(&request);
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let answer = convert::new_answer(request, &self.limits).map_err(|e| status(&e))?;
        let stored = self.cache.store(&namespace, answer, deadline).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::stored_to_pb(&stored)))
    }

    async fn get_entry(&self, request: Request<pb::GetEntryRequest>) -> Result<Response<pb::GetEntryResponse>, Status> {
        let deadline = convert::deadline(&request);
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let id = convert::entry_id(&request.entry_id).map_err(|e| status(&e))?;
        let entry = self.cache.entry(&namespace, &id, deadline).await.map_err(|e| status(&e))?;
        Ok(Response::new(pb::GetEntryResponse { entry: Some(convert::entry_to_pb(entry)) }))
    }

    async fn list_entries(
        &self,
        request: Request<pb::ListEntriesRequest>,
    ) -> Result<Response<pb::ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let after = page_token::decode(&request.page_token).map_err(|e| status(&e))?;
        let count = convert::page_size(request.page_size, &self.limits);
        let detail = if request.omit_responses { Detail::Head } else { Detail::Whole };
        let (entries, next) =
            self.cache.list(&namespace, after, count, detail, self.message_bytes_max).await.map_err(|e| status(&e))?;
        let (entries, next) = convert::page_to_pb(entries, next, self.message_bytes_max);
        Ok(Response::new(pb::ListEntriesResponse {
            entries,
            next_page_token: next.as_ref().map(page_token::encode).unwrap_or_default(),
        }))
    }

    async fn delete_entry(
        &self,
        request: Request<pb::DeleteEntryRequest>,
    ) -> Result<Response<pb::DeleteEntryResponse>, Status> {
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let id = convert::entry_id(&request.entry_id).map_err(|e| status(&e))?;
        let request_id = convert::request_id(&request.request_id).map_err(|e| status(&e))?;
        self.cache.delete(&namespace, id, request_id.as_ref()).await.map_err(|e| status(&e))?;
        Ok(Response::new(pb::DeleteEntryResponse {}))
    }

    async fn invalidate_entries(
        &self,
        request: Request<pb::InvalidateEntriesRequest>,
    ) -> Result<Response<pb::InvalidateEntriesResponse>, Status> {
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let selector = convert::selector(request.selector, &self.limits).map_err(|e| status(&e))?;
        let request_id = convert::request_id(&request.request_id).map_err(|e| status(&e))?;
        let (cache, dry_run) = (self.cache.clone(), request.dry_run);
        // Finishes even if the caller goes away: half an invalidation would look like a whole one.
        let working =
            tokio::spawn(async move { cache.invalidate(&namespace, &selector, dry_run, request_id.as_ref()).await });
        let count = working.await.map_err(|_| Status::internal("the invalidation ended unexpectedly"))?;
        Ok(Response::new(pb::InvalidateEntriesResponse { count: count.map_err(|e| status(&e))? }))
    }

    async fn get_cache_stats(
        &self,
        request: Request<pb::GetCacheStatsRequest>,
    ) -> Result<Response<pb::GetCacheStatsResponse>, Status> {
        let namespace = convert::namespace(&request.get_ref().namespace).map_err(|e| status(&e))?;
        let stats = self.cache.stats(&namespace).await.map_err(|e| status(&e))?;
        Ok(Response::new(convert::stats_to_pb(stats)))
    }
}
