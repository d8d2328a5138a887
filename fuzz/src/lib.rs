//! What must hold of everything that comes from outside, as functions of bytes.
//!
//! Comes in: any bytes. Goes out: nothing, or a panic where a law is broken. A fuzz target hands on
//! what the fuzzer makes up, `tests/cli/fuzz_corpus.rs` what was worth keeping of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::BufReader,
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::NaiveDateTime;
use promptyard::{
    config::{Config, Overrides, WeightKind},
    console::input::{self, Line, Lines},
    engine::local::{CpuModel, ModelFiles, ModelShape},
    job::{Message, RequestLimits, Role, Submission},
    prompt::{ChatTemplate, Detokenizer, SpecialTokens, Specials, Vocabulary},
    scoring::{codec, features::Features, scorer::Scorer},
};

/// Longest message of a refusal, in bytes; it quotes no more than a name of the input.
const MESSAGE_BYTES_MAX: usize = 4096;

/// A request that is read survives being written as a body and as a routed job; a refusal is one
/// short line.
pub fn message_body(body: &[u8]) {
    let limits = RequestLimits::default();
    let read = match Submission::parse(body, &limits) {
        Ok(read) => read,
        Err(rejection) => {
            let message = rejection.reason.message;
            assert!(message.len() <= MESSAGE_BYTES_MAX && !message.contains('\n'));
            return;
        }
    };
    let tenant = read.tenant.clone().unwrap_or_default();
    let written = read.request.to_body(&tenant).to_string();
    let again = Submission::parse(written.as_bytes(), &limits).expect("what was written is read");
    assert_eq!(again.request, read.request);
    assert_eq!(again.tenant, Some(tenant));
    let routed = serde_json::to_vec(&read.request).expect("a request is JSON");
    let routed = serde_json::from_slice(&routed).expect("what was written is read");
    assert_eq!(read.request, routed);
}

/// Every line that is not blank gives one entry, with a key of its own, the same however it is
/// read; a body that is given is accepted by the router.
pub fn batch_file(text: &[u8]) {
    let limits = RequestLimits {
        body_bytes_max: 256,
        ..RequestLimits::default()
    };
    let lines: Vec<Line> = Lines::new(text, limits.clone())
        .map(|line| line.expect("memory can be read"))
        .collect();
    let count = input::count_lines(text).expect("memory can be read");
    assert_eq!(lines.len() as u64, count, "what the progress bar counts");
    let keys: HashSet<_> = lines.iter().map(|line| &line.key).collect();
    assert_eq!(keys.len(), lines.len(), "two lines have one key");
    let mut names = HashSet::new();
    for line in &lines {
        match &line.body {
            Ok(body) => {
                let read = Submission::parse(body, &limits);
                assert!(read.is_ok(), "{:?}", read.err());
                assert!(names.insert(&line.custom_id), "two jobs have one name");
            }
            Err(reason) => assert!(reason.message.len() <= MESSAGE_BYTES_MAX),
        }
    }
    let in_pieces = Lines::new(BufReader::with_capacity(3, text), limits);
    for (line, again) in lines.iter().zip(in_pieces) {
        let again = again.expect("memory can be read");
        let what = |line: &Line| (line.number, line.key.clone(), line.body.clone());
        assert_eq!(what(line), what(&again));
    }
}

/// What is loaded is shown as it was written, and what is shown can be loaded; every fault has a
/// line of the file.
pub fn config_file(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let scratch = Scratch::new();
    let config = match scratch.load(text) {
        Ok(config) => config,
        Err(faults) => {
            assert!(!faults.is_empty());
            let lines = text.matches('\n').count() + 1;
            for (place, message) in faults {
                let line = place.rsplit(':').next().and_then(|line| line.parse().ok());
                assert!(line.is_some_and(|line| (1..=lines).contains(&line)));
                assert!(!message.is_empty());
            }
            return;
        }
    };
    // Whole numbers beyond an i64 are settings, but no values of TOML.
    let table: toml::Table = text.parse().unwrap_or_default();
    for (section, fields) in &table {
        for (field, value) in fields.as_table().into_iter().flatten() {
            let shown = config.section(section).and_then(|s| s.show(field));
            let number = match value {
                toml::Value::Integer(number) => *number as f64,
                toml::Value::Float(number) => *number,
                _ => continue,
            };
            let shown = shown.as_deref().map(str::parse::<f64>);
            assert_eq!(shown, Some(Ok(number)), "{section}.{field}");
        }
    }
    let shown = config.to_toml();
    let again = scratch.load(&shown).expect("what is shown can be loaded");
    assert_eq!(again.to_toml(), shown);
}

/// Templates and conversations.
#[derive(serde::Deserialize)]
struct Published {
    now: NaiveDateTime,
    templates: BTreeMap<String, String>,
}

static PUBLISHED: LazyLock<Published> = LazyLock::new(|| {
    let json = include_str!("../../tests/fixtures/chat_templates.json");
    serde_json::from_str(json).expect("the fixture has templates")
});

static COMPILED: LazyLock<BTreeMap<&str, ChatTemplate>> = LazyLock::new(|| {
    let compile = |(name, source): (&'static String, &String)| {
        let template = ChatTemplate::new(source, special_tokens());
        (name.as_str(), template.expect("a published template"))
    };
    PUBLISHED.templates.iter().map(compile).collect()
});

fn special_tokens() -> SpecialTokens {
    let pair = |name: &str, token: &str| (name.to_owned(), token.to_owned());
    SpecialTokens::new([pair("bos_token", "<s>"), pair("eos_token", "</s>")])
}

/// Messages, each begun by a line `user: …`, `system: …` or `assistant: …`.
fn conversation(text: &str) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for line in text.split('\n') {
        let (role, content) = match line.split_once(": ") {
            Some(("system", content)) => (Role::System, content),
            Some(("user", content)) => (Role::User, content),
            Some(("assistant", content)) => (Role::Assistant, content),
            _ => match messages.last_mut() {
                Some(last) => {
                    last.content.push('\n');
                    last.content.push_str(line);
                    continue;
                }
                None => (Role::User, line),
            },
        };
        messages.push(Message {
            role,
            content: content.to_owned(),
        });
    }
    messages
}

/// Where the first line names a published template, it renders the conversation below or refuses
/// it, and leaves out nothing of the last question; anything else is a template itself, or a
/// `tokenizer_config.json`, and renders or fails.
pub fn chat_template(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let now = PUBLISHED.now;
    let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Some(template) = COMPILED.get(name) {
        let messages = conversation(rest);
        let rendered = template.render_at(&messages, true, now);
        assert_eq!(rendered, template.render_at(&messages, true, now));
        if let (Ok(rendered), Some(last)) = (rendered, messages.last())
            && last.role == Role::User
        {
            assert!(rendered.contains(last.content.trim()), "{rendered:?}");
        }
        return;
    }
    let messages = conversation("system: Be brief.\nuser: Hi\nassistant: Ho\nuser: <é'>");
    let templates = [
        ChatTemplate::new(text, special_tokens()),
        ChatTemplate::from_files(Some(text.as_bytes()), None),
    ];
    for template in templates.into_iter().flatten() {
        let rendered = template.render_at(&messages, true, now);
        if let Err(fault) = rendered {
            assert!(!fault.to_string().is_empty());
        }
    }
}

static VOCABULARIES: LazyLock<[Vocabulary; 2]> = LazyLock::new(|| {
    let files: [&[u8]; 2] = [
        include_bytes!("../../models/small/tokenizer.json"),
        include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json"),
    ];
    files.map(|json| Vocabulary::from_json(json).expect("a tokenizer"))
});

/// A text comes back whole from its tokens, at once and piece by piece, and so does the text of any
/// tokens at all.
pub fn tokenizer_input(bytes: &[u8]) {
    for vocabulary in &*VOCABULARIES {
        let text = String::from_utf8_lossy(bytes);
        let tokens = vocabulary
            .encode(&text, Specials::Written)
            .expect("a byte-level tokenizer takes any text");
        let spelt: Vec<u8> = tokens
            .iter()
            .flat_map(|token| vocabulary.token_bytes(*token).to_vec())
            .collect();
        assert_eq!(spelt, text.as_bytes());
        let pieces = streamed(vocabulary, &tokens);
        let is_plain = !tokens.iter().any(|token| vocabulary.is_special(*token));
        assert!(!is_plain || pieces == text);
        // As tokens of a model that is out of its mind; some are not in the vocabulary.
        let tokens: Vec<u32> = bytes
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])) % 2048)
            .collect();
        streamed(vocabulary, &tokens);
    }
}

/// The text that tokens give one by one: that which they give at once.
fn streamed(vocabulary: &Vocabulary, tokens: &[u32]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut text = String::new();
    for token in tokens {
        text += &detokenizer.push(vocabulary, *token).expect("decodes");
    }
    text += &detokenizer.finish(vocabulary).expect("decodes");
    assert_eq!(text, vocabulary.decode(tokens).expect("decodes"));
    text
}

/// Weights are refused, or written back to the same bytes and score within their bounds; so does
/// any body under a header that fits it.
pub fn router_weights(bytes: &[u8]) {
    check_weights(bytes);
    let mut headed = b"PYGAIN\r\n".to_vec();
    headed.extend(3_u32.to_le_bytes());
    headed.extend(Scorer::features_version().to_le_bytes());
    headed.extend((bytes.len() as u64).to_le_bytes());
    headed.extend(blake3::hash(bytes).as_bytes());
    headed.extend(bytes);
    check_weights(&headed);
}

static FEATURES: LazyLock<[Features; 2]> = LazyLock::new(|| {
    ["", "Which is larger? A) 2/3 B) 0.7 C) they are equal"]
        .map(|text| Features::of_text(text).with_tags(["math"]))
});

fn check_weights(bytes: &[u8]) {
    let scorer = match Scorer::from_bytes(bytes) {
        Ok(scorer) => scorer,
        Err(fault) => {
            assert!(!fault.to_string().contains('\n'));
            return;
        }
    };
    assert_eq!(codec::to_bytes(scorer.weights()), bytes);
    for features in &*FEATURES {
        let score = scorer.score(features);
        assert!(score.expected_gain.is_finite());
        for share in [score.gain, score.small_fails, score.familiarity] {
            assert!((0.0..=1.0).contains(&share), "{score:?}");
        }
        let explained = scorer.explain(features);
        assert!(explained.iter().all(|(_, share)| share.is_finite()));
    }
}

/// A model of one layer, small enough for a file that a fuzzer can write.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 4,
    "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16}"#;

/// Most bytes of tensors put behind a header.
const DATA_BYTES_MAX: usize = 4096;

/// A directory with such a file is a model or is refused. The first byte tells which file the rest
/// is: `c` for `config.json`, `i` for the index, `h` for the header of `model.safetensors` in JSON,
/// anything else for all of that file.
pub fn safetensors_header(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let scratch = Scratch::new();
    let weights = match kind {
        b'c' | b'i' => with_length(&header()),
        b'h' => with_length(rest),
        _ => rest.to_vec(),
    };
    scratch.write("model.safetensors", &weights);
    let config = if *kind == b'c' {
        rest
    } else {
        CONFIG.as_bytes()
    };
    scratch.write("config.json", config);
    if *kind == b'i' {
        scratch.write("model.safetensors.index.json", rest);
    }
    if let Ok(shape) = ModelShape::from_json(config, None) {
        assert_eq!(shape.windows.len(), shape.layers);
        assert!(shape.head > 0 && shape.heads.is_multiple_of(shape.kv_heads));
        assert!(shape.parameters() > 0);
    }
    let files = ModelFiles::Directory(scratch.folder.clone());
    let _ = files.weight_files();
    match CpuModel::read(&files, 64, WeightKind::F32) {
        Ok(model) => assert!(model.weight_bytes() > 0 && model.kv_bytes_per_block() > 0),
        Err(fault) => assert!(!fault.is_empty()),
    }
}

/// The header of a file that [`CONFIG`] describes.
fn header() -> Vec<u8> {
    let mut tensors = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![8, 4]),
        ("model.norm.weight".to_owned(), vec![4]),
    ]);
    for part in ["q", "k", "v", "o"] {
        let name = format!("model.layers.0.self_attn.{part}_proj.weight");
        tensors.insert(name, vec![4, 4]);
    }
    for part in ["gate", "up", "down"] {
        let name = format!("model.layers.0.mlp.{part}_proj.weight");
        tensors.insert(name, vec![4, 4]);
    }
    for part in ["input", "post_attention"] {
        let name = format!("model.layers.0.{part}_layernorm.weight");
        tensors.insert(name, vec![4]);
    }
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        let tensor = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(name, tensor);
        at = end;
    }
    serde_json::Value::Object(header).to_string().into_bytes()
}

/// A header with its length before it, and as many zeros behind it as its tensors take.
fn with_length(header: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let ends = serde_json::from_slice::<serde_json::Value>(header).ok();
    let ends: BTreeSet<u64> = ends
        .iter()
        .filter_map(serde_json::Value::as_object)
        .flat_map(|tensors| tensors.values())
        .filter_map(|tensor| tensor["data_offsets"][1].as_u64())
        .collect();
    let data_bytes = ends.last().map_or(0, |end| *end as usize);
    file.resize(file.len() + data_bytes.min(DATA_BYTES_MAX), 0);
    file
}

/// A folder that goes when it is dropped.
struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("promptyard-fuzz-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self { folder }
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.join(name), content).expect("a temporary file");
    }

    /// Loads a configuration; faults as place and message.
    fn load(&self, text: &str) -> Result<Config, Vec<(String, String)>> {
        self.write("promptyard.toml", text.as_bytes());
        let path = self.folder.join("promptyard.toml");
        Config::load(Some(&path), [], &Overrides::default()).map_err(|faults| {
            let parts = faults.into_iter();
            parts.map(|fault| (fault.place, fault.message)).collect()
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
