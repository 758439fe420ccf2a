//! `refrain embed`.

use std::io::{IsTerminal as _, Read as _};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    Failure, Output,
    client::ClientArgs,
    output::{clip, print_json, print_table},
};
use crate::grpc::pb::{EmbedPurpose, EmbedRequest, embedding_service_client::EmbeddingServiceClient};

/// Components shown of each vector in a table.
const SHOWN: usize = 4;

/// Turn texts into vectors with the model of a running sidecar.
#[derive(Debug, Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The texts; without any, one a line from stdin.
    texts: Vec<String>,
    /// What the texts are for.
    #[arg(long, value_enum, default_value = "query")]
    purpose: PurposeArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PurposeArg {
    /// Questions that look for something.
    Query,
    /// Texts to be found.
    Passage,
}

pub(super) async fn run(args: EmbedArgs) -> Result<(), Failure> {
    let texts = if args.texts.is_empty() { lines_of_stdin()? } else { args.texts };
    let mut client = EmbeddingServiceClient::new(args.client.connect().await?);
    let purpose = match args.purpose {
        PurposeArg::Query => EmbedPurpose::Query,
        PurposeArg::Passage => EmbedPurpose::Passage,
    };
    let request = EmbedRequest {
        namespace: args.client.namespace.clone(),
        texts: texts.clone(),
        purpose: purpose.into(),
        lane: 0,
    };
    let response = client.embed(request).await?.into_inner();
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    };
    match args.client.output {
        Output::Json => print_json(&json!({
            "space": response.space,
            "dimension": response.dimension,
            "embeddings": response.embeddings.iter().map(|one| json!({
                "vector": floats(&one.vector),
                "tokens": one.tokens,
                "truncated": one.truncated,
                "memoized": one.memoized,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            println!("space {}, {} components", response.space, response.dimension);
            let rows = texts.iter().zip(&response.embeddings).map(|(text, one)| {
                let head: Vec<String> = floats(&one.vector).iter().take(SHOWN).map(|v| format!("{v:+.4}")).collect();
                let notes = [(one.truncated, "truncated"), (one.memoized, "memoized")];
                let notes: Vec<&str> = notes.into_iter().filter_map(|(on, note)| on.then_some(note)).collect();
                vec![clip(text), one.tokens.to_string(), format!("{} …", head.join(" ")), notes.join(", ")]
            });
            print_table(&["text", "tokens", "vector", "notes"], rows);
        }
    }
    Ok(())
}

fn lines_of_stdin() -> Result<Vec<String>, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::Usage("no text given; name some, or pipe one a line into stdin".into()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Failure::failed)?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}
