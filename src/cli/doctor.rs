//! `refrain doctor`.

use std::{path::Path, sync::Arc};

use clap::Args;
use serde_json::json;

use super::{
    Failure, Output, SettingsArgs,
    output::{print_json, print_table},
};
use crate::{
    app,
    clock::Clock,
    config::{Config, EngineKind},
    embed::{
        model::{Model, Purpose, Spec},
        onnx,
    },
    error::Fault as _,
    store,
};

/// Name each dependency, its version, whether it works, and what to do if not.
///
/// Reads the same settings as `serve` and touches nothing but what they name. Exits with 1 if
/// anything needs mending.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// How to print results.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

/// The finding about one dependency.
struct Finding {
    what: &'static str,
    good: bool,
    detail: String,
}

impl Finding {
    fn good(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, good: true, detail: detail.into() }
    }

    fn bad(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Self { what, good: false, detail: detail.to_string() }
    }
}

pub(super) async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let config = super::load(&args.settings.sources([]))?;
    let mut findings = vec![
        Finding::good("refrain", env!("CARGO_PKG_VERSION")),
        Finding::good("settings", "all layers are good"),
        runtime(&config),
    ];
    let model = app::load_model(&config).await;
    let spec = match &model {
        Ok(model) => {
            findings.push(examine_model(model).await);
            Some(model.spec().clone())
        }
        Err(problem) => {
            findings.push(Finding::bad("model", problem));
            None
        }
    };
    findings.push(engine(&config, model.ok().as_deref(), spec.as_ref()).await);
    report(&findings, args.output);
    if findings.iter().all(|finding| finding.good) {
        Ok(())
    } else {
        Err(Failure::Failed("something needs mending; see above".into()))
    }
}

fn runtime(config: &Config) -> Finding {
    if config.embedding.model == "fake" {
        return Finding::good("onnx runtime", "not needed by the fake model");
    }
    let path = config.onnxruntime();
    match onnx::runtime_build(&path) {
        Ok(build) => Finding::good("onnx runtime", format!("{}: {build}", path.display())),
        Err(problem) => Finding::bad("onnx runtime", problem),
    }
}

async fn examine_model(model: &Arc<dyn Model>) -> Finding {
    let examined = Arc::clone(model);
    let embedded = tokio::task::spawn_blocking(move || {
        let text = format!("{}is anybody there?", examined.spec().prefix(Purpose::Query));
        examined.session()?.embed(&[text.into()])
    });
    let spec = model.spec();
    match embedded.await {
        Ok(Ok(_)) => Finding::good(
            "model",
            format!(
                "{}, revision {}, quantization {}, {} components, {} tokens, space {}; it answers",
                spec.name,
                spec.revision,
                spec.quantization,
                spec.dimension,
                spec.tokens_max,
                spec.space()
            ),
        ),
        Ok(Err(problem)) => Finding::bad("model", problem),
        Err(problem) => Finding::bad("model", problem),
    }
}

async fn engine(config: &Config, model: Option<&dyn Model>, spec: Option<&Spec>) -> Finding {
    let what = match config.store.engine {
        EngineKind::Embedded => "embedded engine",
        EngineKind::Redis => "redis engine",
    };
    let (Some(model), Some(_)) = (model, spec) else {
        return Finding::bad(what, "not examined: it needs the model's dimension");
    };
    if config.store.engine == EngineKind::Embedded
        && let Some(finding) = fresh_data_dir(what, &config.data_dir())
    {
        return finding;
    }
    let opened = app::open_engine(config, model, Clock::system()).await;
    let engine = match opened {
        Ok(engine) => engine,
        // Most likely the sidecar that this look is about.
        Err(store::Error::InUse { what: dir, holder }) => {
            return Finding::good(what, format!("{dir} is in use by {holder}; a running sidecar answers for it"));
        }
        Err(problem) => return Finding::bad(what, format!("{}: {problem}", problem.reason())),
    };
    let finding = match engine.health.check().await {
        Ok(()) => {
            let details = engine.health.describe().await.unwrap_or_default();
            let details: Vec<String> = details.into_iter().map(|(name, value)| format!("{name} {value}")).collect();
            Finding::good(what, format!("it answers; {}", details.join(", ")))
        }
        Err(problem) => Finding::bad(what, format!("{}: {problem}", problem.reason())),
    };
    engine.health.close().await;
    finding
}

/// A data folder that does not exist yet is fine and must not be made by a mere look.
fn fresh_data_dir(what: &'static str, dir: &Path) -> Option<Finding> {
    (!dir.exists())
        .then(|| Finding::good(what, format!("{} does not exist yet; `refrain serve` makes it", dir.display())))
}

fn report(findings: &[Finding], output: Output) {
    match output {
        Output::Json => print_json(&json!(
            findings
                .iter()
                .map(|finding| json!({ "what": finding.what, "good": finding.good, "detail": finding.detail }))
                .collect::<Vec<_>>()
        )),
        Output::Table => {
            let rows = findings.iter().map(|finding| {
                let mark = if finding.good { "good" } else { "MEND" };
                vec![finding.what.to_owned(), mark.to_owned(), finding.detail.clone()]
            });
            print_table(&["dependency", "", "finding"], rows);
        }
    }
}
