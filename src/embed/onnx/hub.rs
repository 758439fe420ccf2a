//! Models that are known by name and downloaded.

use std::path::Path;

use fastembed::{EmbeddingModel, ModelInfo, QuantizationMode, TextEmbedding};

use super::Draft;
use crate::embed::model::ModelError;

/// Finds a model by name and fetches its files into `cache`, unless they are there.
pub(super) fn fetch(name: &str, cache: &Path) -> Result<Draft, ModelError> {
    let info = find(name)?;
    download::fetch(&info, cache)
}

/// The model of a name: fastembed's own (`BGESmallENV15`), the repository's
/// (`Xenova/bge-small-en-v1.5`) or its last part (`bge-small-en-v1.5`), in any case.
fn find(name: &str) -> Result<ModelInfo<EmbeddingModel>, ModelError> {
    let mut matches: Vec<_> = TextEmbedding::list_supported_models();
    matches.retain(|info| names(info).iter().any(|known| known.eq_ignore_ascii_case(name)));
    if matches.is_empty() {
        return Err(unusable(name, "no model of this name is known"));
    }
    matches.retain(|info| !is_dynamic(info));
    // Several models can share a repository's name: the plain one is meant before a quantized one.
    // The list comes in random order, so without a full order a restart could change the space.
    let plain_first = |info: &ModelInfo<EmbeddingModel>| {
        let quantized = TextEmbedding::get_quantization_mode(&info.model) != QuantizationMode::None;
        (!info.model.to_string().eq_ignore_ascii_case(name), quantized, info.model.to_string())
    };
    matches.into_iter().min_by_key(plain_first).ok_or_else(|| unusable(name, super::DYNAMIC_REFUSED))
}

/// Whether fastembed lists a model of this name.
pub(super) fn is_known(name: &str) -> bool {
    TextEmbedding::list_supported_models()
        .iter()
        .any(|info| names(info).iter().any(|known| known.eq_ignore_ascii_case(name)))
}

fn unusable(name: &str, problem: &str) -> ModelError {
    let mut known: Vec<_> = TextEmbedding::list_supported_models();
    known.retain(|info| !is_dynamic(info));
    let mut known: Vec<_> = known.iter().map(|info| info.model.to_string()).collect();
    known.sort_unstable();
    ModelError::Asset {
        what: format!("the model {name:?}"),
        problem: problem.into(),
        remedy: format!("Name a folder with a model.toml, or one of: {}", known.join(", ")),
    }
}

fn names(info: &ModelInfo<EmbeddingModel>) -> [String; 3] {
    let last = info.model_code.rsplit('/').next().unwrap_or_default();
    let last = last.trim_end_matches("-Q").trim_end_matches("-onnx");
    [info.model.to_string(), info.model_code.clone(), last.to_owned()]
}

fn is_dynamic(info: &ModelInfo<EmbeddingModel>) -> bool {
    TextEmbedding::get_quantization_mode(&info.model) == QuantizationMode::Dynamic
}

/// What a family of models was trained with, which its files do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg(any(feature = "hub", test))]
struct Training {
    query_prefix: &'static str,
    passage_prefix: &'static str,
    tokens_max: usize,
}

/// The training of a model, by its repository; from the authors' model cards.
#[cfg(any(feature = "hub", test))]
fn training(repository: &str) -> Training {
    let repository = repository.to_lowercase();
    let is = |part: &str| repository.contains(part);
    let (query_prefix, passage_prefix) = if is("e5-") {
        ("query: ", "passage: ")
    } else if is("bge-") && is("-zh") {
        ("为这个句子生成表示以用于检索相关文章：", "")
    } else if (is("bge-") && is("-en")) || is("mxbai") || is("arctic-embed") {
        ("Represent this sentence for searching relevant passages: ", "")
    } else if is("nomic-embed") || is("modernbert-embed") {
        ("search_query: ", "search_document: ")
    } else if is("embeddinggemma") {
        ("task: search result | query: ", "title: none | text: ")
    } else {
        ("", "")
    };
    let tokens_max = if is("all-minilm-l6") {
        256
    } else if is("minilm-l12") || is("paraphrase-multilingual-mpnet") {
        128
    } else if is("all-mpnet") {
        384
    } else {
        512
    };
    Training { query_prefix, passage_prefix, tokens_max }
}

#[cfg(not(feature = "hub"))]
mod download {
    use std::path::Path;

    use fastembed::{EmbeddingModel, ModelInfo};

    use super::{Draft, ModelError};

    pub(super) fn fetch(info: &ModelInfo<EmbeddingModel>, _cache: &Path) -> Result<Draft, ModelError> {
        Err(ModelError::Asset {
            what: format!("the model {:?}", info.model.to_string()),
            problem: "this build cannot download models".into(),
            remedy: "Build with the feature `hub`, or name a folder with a model.toml".into(),
        })
    }
}

#[cfg(feature = "hub")]
mod download {
    //! The download itself, blocking.

    use std::path::{Path, PathBuf};

    use fastembed::{EmbeddingModel, ModelInfo, QuantizationMode, TextEmbedding, TokenizerFiles};
    use hf_hub::{
        Cache,
        api::{
            Progress,
            sync::{ApiBuilder, ApiRepo},
        },
    };

    use super::{Draft, ModelError, training};
    use crate::embed::{
        model::Spec,
        onnx::{Files, read, tokens_max},
    };

    pub(super) fn fetch(info: &ModelInfo<EmbeddingModel>, cache: &Path) -> Result<Draft, ModelError> {
        let hub = Hub::new(&info.model_code, cache)?;
        let weights = info.additional_files.iter().map(|name| {
            // The graph knows its weights by their bare names.
            let known_as = name.rsplit('/').next().unwrap_or(name).to_owned();
            Ok((known_as, hub.file(name)?))
        });
        let weights = weights.collect::<Result<_, ModelError>>()?;
        let content = |name: &str| hub.file(name).and_then(|path| read(&path, &hub.remedy));
        let tokenizer = TokenizerFiles {
            tokenizer_file: content("tokenizer.json")?,
            config_file: content("config.json")?,
            special_tokens_map_file: content("special_tokens_map.json")?,
            tokenizer_config_file: content("tokenizer_config.json")?,
        };
        let training = training(&info.model_code);
        let cut_at = tokens_max(&tokenizer)
            .ok_or_else(|| hub.unusable("its tokenizer_config.json has no number `model_max_length`"))?;
        let pooling = TextEmbedding::get_default_pooling_method(&info.model).unwrap_or_default();
        let quantization = match TextEmbedding::get_quantization_mode(&info.model) {
            QuantizationMode::None => "none",
            QuantizationMode::Static => "static",
            QuantizationMode::Dynamic => return Err(hub.unusable(crate::embed::onnx::DYNAMIC_REFUSED)),
        };
        let spec = Spec {
            name: info.model.to_string(),
            revision: String::new(),
            pooling: if pooling == fastembed::Pooling::Mean { "mean" } else { "cls" }.into(),
            quantization: quantization.into(),
            dimension: info.dim,
            tokens_max: training.tokens_max.min(cut_at),
            query_prefix: training.query_prefix.into(),
            passage_prefix: training.passage_prefix.into(),
        };
        let graph = hub.file(&info.model_file)?;
        let output = info.output_key.clone();
        Ok(Draft { spec, files: Files { graph, weights, tokenizer, pooling, output, remedy: hub.remedy } })
    }

    /// One repository, seen through a cache on disk.
    struct Hub {
        name: String,
        remedy: String,
        cache: Cache,
        repository: ApiRepo,
    }

    impl Hub {
        fn new(name: &str, folder: &Path) -> Result<Self, ModelError> {
            let remedy = format!(
                "Check the network and start again; if the files are damaged, delete {} first",
                folder.display()
            );
            let unusable = |problem: String| ModelError::Asset {
                what: format!("the model {name:?}"),
                problem,
                remedy: remedy.clone(),
            };
            let cache = Cache::new(folder.to_owned());
            let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(3);
            if let Ok(mirror) = std::env::var("HF_ENDPOINT") {
                builder = builder.with_endpoint(mirror);
            }
            let api = builder.build().map_err(|error| unusable(error.to_string()))?;
            Ok(Self { name: name.to_owned(), remedy, cache, repository: api.model(name.to_owned()) })
        }

        /// Where a file lies, after fetching it if need be.
        fn file(&self, name: &str) -> Result<PathBuf, ModelError> {
            if let Some(path) = self.cache.model(self.name.clone()).get(name) {
                return Ok(path);
            }
            let fetched = self.repository.download_with_progress(name, Log::default());
            fetched.map_err(|error| self.unusable(&format!("{name} could not be downloaded: {error}")))
        }

        fn unusable(&self, problem: &str) -> ModelError {
            let what = format!("the model {:?}", self.name);
            ModelError::Asset { what, problem: problem.into(), remedy: self.remedy.clone() }
        }
    }

    /// Writes a line to the log for every tenth of a file.
    #[derive(Default)]
    struct Log {
        file: String,
        bytes: usize,
        bytes_total: usize,
        tenths: usize,
    }

    impl Progress for Log {
        fn init(&mut self, size: usize, file: &str) {
            *self = Self { file: file.to_owned(), bytes_total: size, ..Self::default() };
            tracing::info!(file, bytes = size, "downloading the model");
        }

        fn update(&mut self, size: usize) {
            self.bytes += size;
            let tenths = self.bytes * 10 / self.bytes_total.max(1);
            if tenths > self.tenths {
                self.tenths = tenths;
                tracing::info!(file = self.file, percent = tenths * 10, "downloading the model");
            }
        }

        fn finish(&mut self) {
            tracing::info!(file = self.file, "downloaded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(name: &str) -> String {
        find(name).map_or_else(|error| error.to_string(), |info| info.model.to_string())
    }

    #[test]
    fn models_are_found_by_any_of_their_names() {
        assert_eq!(name_of("BGESmallENV15"), "BGESmallENV15");
        assert_eq!(name_of("xenova/bge-small-en-v1.5"), "BGESmallENV15");
        assert_eq!(name_of("bge-small-en-v1.5"), "BGESmallENV15");
        assert_eq!(name_of("all-MiniLM-L6-v2"), "AllMiniLML6V2");
        assert_eq!(name_of("multilingual-e5-small"), "MultilingualE5Small");
    }

    #[test]
    fn unknown_and_dynamic_models_are_refused_with_the_names_to_choose_from() {
        let unknown = name_of("no-such-model");
        assert!(unknown.contains("no model of this name") && unknown.contains("BGESmallENV15"), "{unknown}");
        let dynamic = name_of("AllMiniLML6V2Q");
        assert!(dynamic.contains("dynamically"), "{dynamic}");
        assert!(!unknown.contains("AllMiniLML6V2Q"), "what cannot run is not offered");
    }

    #[test]
    fn a_name_is_a_folder_first_and_a_listed_model_second() {
        use crate::embed::onnx::Source;
        let models = tempfile::tempdir().unwrap();
        std::fs::create_dir(models.path().join("bge-small-en-v1.5")).unwrap();
        let check = |name: &str, expect: Option<&str>| {
            let cache = std::path::PathBuf::from("cache");
            let expect = match expect {
                Some(listed) => Source::Named { name: listed.into(), cache: cache.clone() },
                None => Source::Folder(models.path().join(name)),
            };
            assert_eq!(Source::resolve(name, models.path(), cache), expect, "{name}");
        };
        check("bge-small-en-v1.5", None);
        check("hub:bge-small-en-v1.5", Some("bge-small-en-v1.5"));
        check("multilingual-e5-small", Some("multilingual-e5-small"));
        check("intfloat/multilingual-e5-small", Some("intfloat/multilingual-e5-small"));
        check("all-MiniLM-L6-v2", None);
        check("no-such-model", None);
        let path = models.path().join("bge-small-en-v1.5");
        let path = path.to_str().unwrap();
        assert_eq!(Source::resolve(path, models.path(), "cache".into()), Source::Folder(path.into()));
    }

    #[test]
    fn prefixes_are_those_of_the_model_cards() {
        let prefixes = |repository| {
            let Training { query_prefix, passage_prefix, .. } = training(repository);
            (query_prefix, passage_prefix)
        };
        assert_eq!(prefixes("intfloat/multilingual-e5-small"), ("query: ", "passage: "));
        assert_eq!(prefixes("Qdrant/all-MiniLM-L6-v2-onnx"), ("", ""));
        assert_eq!(prefixes("BAAI/bge-m3"), ("", ""));
        assert!(prefixes("Xenova/bge-small-en-v1.5").0.starts_with("Represent this sentence"));
        assert!(prefixes("Xenova/bge-small-zh-v1.5").0.starts_with("为这个句子"));
        assert_eq!(prefixes("nomic-ai/nomic-embed-text-v1.5"), ("search_query: ", "search_document: "));
        assert_eq!(training("Qdrant/all-MiniLM-L6-v2-onnx").tokens_max, 256);
    }
}
