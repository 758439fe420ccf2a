//! EmbeddingService.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{
    convert,
    pb::{self, embedding_service_server::EmbeddingService},
    status::status,
};
use crate::{
    embed::{Embedder, Lane, model::Purpose},
    error::Invalid,
};

/// The embedding model over gRPC.
pub struct EmbeddingApi {
    embedder: Embedder,
}

impl EmbeddingApi {
    /// Serves `embedder`.
    pub fn new(embedder: Embedder) -> Self {
        Self { embedder }
    }
}

fn purpose(value: i32) -> Result<Purpose, Invalid> {
    match pb::EmbedPurpose::try_from(value) {
        Ok(pb::EmbedPurpose::Unspecified | pb::EmbedPurpose::Query) => Ok(Purpose::Query),
        Ok(pb::EmbedPurpose::Passage) => Ok(Purpose::Passage),
        Err(_) => Err(Invalid::new("purpose", format!("is {value}, which names no purpose"))),
    }
}

fn lane(value: i32, texts: usize) -> Result<Lane, Invalid> {
    match pb::EmbedLane::try_from(value) {
        Ok(pb::EmbedLane::Unspecified) if texts > 1 => Ok(Lane::Bulk),
        Ok(pb::EmbedLane::Unspecified | pb::EmbedLane::Interactive) => Ok(Lane::Interactive),
        Ok(pb::EmbedLane::Bulk) => Ok(Lane::Bulk),
        Err(_) => Err(Invalid::new("lane", format!("is {value}, which names no lane"))),
    }
}

#[tonic::async_trait]
impl EmbeddingService for EmbeddingApi {
    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Result<Response<pb::EmbedResponse>, Status> {
        let deadline = convert::deadline(&request);
        let request = request.into_inner();
        let namespace = convert::namespace(&request.namespace).map_err(|e| status(&e))?;
        let purpose = purpose(request.purpose).map_err(|e| status(&e))?;
        let lane = lane(request.lane, request.texts.len()).map_err(|e| status(&e))?;
        let texts: Vec<Arc<str>> = request.texts.into_iter().map(Arc::from).collect();
        let embedded =
            self.embedder.embed(&namespace, &texts, purpose, lane, deadline).await.map_err(|e| status(&e))?;
        let embeddings = embedded.into_iter().map(|one| pb::Embedding {
            vector: Bytes::from(one.vector.to_le_bytes()),
            tokens: one.tokens,
            truncated: one.truncated,
            memoized: one.memoized,
        });
        Ok(Response::new(pb::EmbedResponse {
            embeddings: embeddings.collect(),
            space: self.embedder.space().to_string(),
            dimension: self.embedder.spec().dimension as u32,
        }))
    }

    async fn get_model(
        &self,
        _request: Request<pb::GetModelRequest>,
    ) -> Result<Response<pb::GetModelResponse>, Status> {
        Ok(Response::new(pb::GetModelResponse { model: Some(convert::spec_to_pb(self.embedder.spec())) }))
    }
}
