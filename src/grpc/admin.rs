//! AdminService.

use tonic::{Request, Response, Status};

use super::{
    convert,
    pb::{self, admin_service_server::AdminService},
    status::status,
};
use crate::{config::Config, embed::Embedder, store::Engine, types::Timestamp};

/// What this sidecar is, over gRPC.
pub struct AdminApi {
    engine: Engine,
    embedder: Embedder,
    limits: pb::ServerLimits,
    started: Timestamp,
}

impl AdminApi {
    /// Describes the parts it is given.
    pub fn new(engine: Engine, embedder: Embedder, config: &Config, started: Timestamp) -> Self {
        let limits = pb::ServerLimits {
            message_bytes_max: config.server.message_bytes_max as u64,
            prompt_bytes_max: config.limits.prompt_bytes_max as u64,
            response_bytes_max: config.limits.response_bytes_max as u64,
            attributes_max: config.limits.attributes_max as u32,
            batch_max: config.limits.batch_max as u32,
            embed_texts_max: config.embedding.settings.texts_max as u32,
            embed_text_bytes_max: config.embedding.settings.text_bytes_max as u64,
            page_size_max: config.limits.page_size_max as u32,
            ttl_max: Some(convert::duration_to_pb(config.cache.ttl_max)),
        };
        Self { engine, embedder, limits, started }
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn get_server_info(
        &self,
        _request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        let details = self.engine.health.describe().await.map_err(|e| status(&e))?;
        Ok(Response::new(pb::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: self.engine.name.to_owned(),
            engine_details: details.into_iter().collect(),
            model: Some(convert::spec_to_pb(self.embedder.spec())),
            start_time: Some(convert::timestamp_to_pb(self.started)),
            limits: Some(self.limits),
        }))
    }
}
