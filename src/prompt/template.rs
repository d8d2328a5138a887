//! Renders Hugging Face chat templates exactly as transformers does.
//!
//! A template is a Jinja program inside the checkpoint. transformers renders it with
//! `trim_blocks`, `lstrip_blocks` and loop controls, gives it the special tokens, `messages`,
//! `add_generation_prompt`, `raise_exception` and `strftime_now`, and expects Python's string
//! methods (`transformers/utils/chat_template_utils.py`).

use std::{collections::BTreeMap, fmt::Write as _};

use chrono::{Local, NaiveDateTime};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};
use serde::{Deserialize, Serialize as _};

use super::{PromptError, Specials};
use crate::job::{Message, Role};

/// Special tokens that a template may use: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    const NAMES: [&'static str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

    /// Creates them from pairs of a name (`bos_token`) and the token's text.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// The parts of `tokenizer_config.json` that prompts need.
#[derive(Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<TemplateField>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Checkpoints carry one template or several named ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    fn special_tokens(&self) -> SpecialTokens {
        let text = |name: &&str| {
            let value = self.others.get(*name)?;
            // Older files write `{"content": "<s>", "lstrip": false, …}`.
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some(((*name).to_owned(), token.to_owned()))
        };
        SpecialTokens(SpecialTokens::NAMES.iter().filter_map(text).collect())
    }

    fn template(&self) -> Option<&str> {
        match self.chat_template.as_ref()? {
            TemplateField::One(template) => Some(template),
            TemplateField::Named(named) => {
                let default = named.iter().find(|entry| entry.name == "default");
                default
                    .or(named.first())
                    .map(|entry| entry.template.as_str())
            }
        }
    }
}

/// Base budget of a template in minijinja's fuel (one per instruction or 64 bytes allocated): a
/// template is a program from the checkpoint's author and must neither run forever nor exhaust memory.
/// Published ones use about a hundred per message.
const FUEL: u64 = 100_000;
/// Additional budget per message.
const FUEL_PER_MESSAGE: u64 = 10_000;
/// Additional budget per byte of the messages: enough to copy it 512 times.
const FUEL_PER_BYTE: u64 = 8;
/// Maximum indentation of JSON, in spaces.
const INDENT_MAX: usize = 64;

/// Renders messages as the text that a model was trained to continue.
#[derive(Debug)]
pub struct ChatTemplate {
    /// The compiled template; `None` for the plain format.
    environment: Option<Environment<'static>>,
    special_tokens: SpecialTokens,
}

impl ChatTemplate {
    const NAME: &'static str = "chat";

    /// Compiles a template.
    ///
    /// # Errors
    /// [`PromptError::BadFile`] with the line of the syntax error.
    pub fn new(template: &str, special_tokens: SpecialTokens) -> Result<Self, PromptError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_python_json);
        environment
            .add_template_owned(Self::NAME, without_generation_tags(template))
            .map_err(|error| {
                PromptError::BadFile(format!("the chat template cannot be parsed: {error}"))
            })?;
        Ok(Self {
            environment: Some(environment),
            special_tokens,
        })
    }

    /// The format for models without a template: a single user message is sent unchanged; a longer
    /// conversation becomes `System:`, `User:` and `Assistant:` paragraphs.
    pub fn plain() -> Self {
        Self {
            environment: None,
            special_tokens: SpecialTokens::default(),
        }
    }

    /// Reads the template of a checkpoint: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (one, or the `default` of a list), else [`Self::plain`].
    ///
    /// # Errors
    /// [`PromptError::BadFile`] when a file cannot be parsed.
    pub fn from_files(
        tokenizer_config: Option<&[u8]>,
        template_file: Option<&[u8]>,
    ) -> Result<Self, PromptError> {
        let bad = |what: &str, error: String| {
            PromptError::BadFile(format!("{what} cannot be parsed: {error}"))
        };
        let config: Option<TokenizerConfig> = tokenizer_config
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|error| bad("tokenizer_config.json", error.to_string()))?;
        let file = template_file
            .map(str::from_utf8)
            .transpose()
            .map_err(|error| bad("chat_template.jinja", error.to_string()))?;
        let special_tokens = config
            .as_ref()
            .map(TokenizerConfig::special_tokens)
            .unwrap_or_default();
        match file.or_else(|| config.as_ref()?.template()) {
            Some(template) => Self::new(template, special_tokens),
            None => Ok(Self::plain()),
        }
    }

    /// How to tokenize the rendered text: templates write their special tokens themselves.
    pub fn specials(&self) -> Specials {
        match self.environment {
            Some(_) => Specials::Written,
            None => Specials::Add,
        }
    }

    /// Renders a conversation up to the start of the assistant's answer.
    ///
    /// # Errors
    /// [`PromptError::Refused`] when the template raises an exception or fails on the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, PromptError> {
        self.render_at(messages, true, Local::now().naive_local())
    }

    /// Like [`Self::render`], with or without the generation prompt, at a given local time (some
    /// templates write the date).
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: NaiveDateTime,
    ) -> Result<String, PromptError> {
        let Some(environment) = &self.environment else {
            return Ok(plain_text(messages, add_generation_prompt));
        };
        let mut context: BTreeMap<&str, Value> = self
            .special_tokens
            .0
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        context.insert(
            "messages",
            messages.iter().map(turn).collect::<Vec<_>>().into(),
        );
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        // transformers passes both even when they are empty.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.insert(
            "strftime_now",
            Value::from_function(move |format: String| strftime(now, &format)),
        );
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_BYTE * bytes as u64;
        // A clone shares everything except the fuel limit.
        let mut environment = environment.clone();
        environment.set_fuel(Some(fuel));
        environment
            .get_template(Self::NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| {
                PromptError::Refused(
                    error
                        .detail()
                        .map_or_else(|| error.to_string(), str::to_owned),
                )
            })
    }
}

fn turn(message: &Message) -> Value {
    Value::from_pairs([
        ("role", message.role.as_str()),
        ("content", &message.content),
    ])
}

fn plain_text(messages: &[Message], add_generation_prompt: bool) -> String {
    if let [only] = messages
        && only.role == Role::User
    {
        return only.content.clone();
    }
    let mut text = String::new();
    for message in messages {
        let speaker = match message.role {
            Role::System => "System",
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        let _ = write!(text, "{speaker}: {}\n\n", message.content);
    }
    if add_generation_prompt {
        text.push_str("Assistant:");
    }
    text
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    // An unknown specifier is a formatting error, which `to_string` would turn into a panic.
    write!(text, "{}", now.format(format)).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: bad format {format:?}"),
        )
    })?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False)`; minijinja's own filter escapes for HTML.
fn to_python_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let error = |error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    let indent: Option<usize> = options.get("indent")?;
    let mut json = Vec::new();
    match indent {
        Some(width) if width > INDENT_MAX => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: indent is {width}; at most {INDENT_MAX} is accepted"),
            ));
        }
        Some(width) => {
            let spaces = " ".repeat(width);
            let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(
                    &mut json, style,
                ))
                .map_err(error)?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut json, PythonJson,
            ))
            .map_err(error)?,
    }
    Ok(Value::from(
        String::from_utf8(json).expect("serde_json writes UTF-8"),
    ))
}

/// Formats JSON like Python, with a space after every comma and colon.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// transformers' `{% generation %}` marks the assistant's part for training and renders nothing.
fn without_generation_tags(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |at| at + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(|c: char| "{%-+} \n\t".contains(c));
        match word {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> Message {
        Message {
            role: Role::User,
            content: content.to_owned(),
        }
    }

    #[test]
    fn plain_format_labels_conversations_only() {
        let plain = ChatTemplate::plain();
        assert_eq!(plain.render(&[user("Once")]).as_deref(), Ok("Once"));
        let system = Message {
            role: Role::System,
            content: "Be brief.".to_owned(),
        };
        let text = plain.render(&[system, user("Hi")]);
        assert_eq!(
            text.as_deref(),
            Ok("System: Be brief.\n\nUser: Hi\n\nAssistant:")
        );
        assert_eq!(plain.specials(), Specials::Add);
    }

    #[test]
    fn reads_special_tokens_in_published_formats() {
        let config = br#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null,
            "chat_template": [{"name": "tool_use", "template": "no"},
                              {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ pad_token }}"}]}"#;
        let template = ChatTemplate::from_files(Some(config), None).expect("understood");
        assert_eq!(template.render(&[user("a")]).as_deref(), Ok("<s>a"));
        let template = ChatTemplate::from_files(Some(config), Some(b"file {{ eos_token }}"))
            .expect("understood");
        assert_eq!(template.render(&[user("a")]).as_deref(), Ok("file </s>"));
        assert_eq!(template.specials(), Specials::Written);
    }

    #[test]
    fn formats_json_like_python_and_ignores_generation_tags() {
        let source = "{% generation %}{{ messages | tojson }}{%- endgeneration %}";
        let template = ChatTemplate::new(source, SpecialTokens::default()).expect("understood");
        let text = template.render(&[user("<é'>")]);
        assert_eq!(
            text.as_deref(),
            Ok("[{\"role\": \"user\", \"content\": \"<é'>\"}]")
        );
    }

    #[test]
    fn templates_are_limited_in_steps_and_memory() {
        for source in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "{{ messages | tojson(indent=9999999999999999) }}",
        ] {
            let template = ChatTemplate::new(source, SpecialTokens::default());
            let error = template.expect("understood").render(&[user("a")]);
            assert!(matches!(error, Err(PromptError::Refused(_))), "{source}");
        }
        let source = "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x ~ m.content %}{% endfor %}{{ n.x }}";
        let template = ChatTemplate::new(source, SpecialTokens::default()).expect("understood");
        let long = "word ".repeat(40);
        let text = template.render(&vec![user(&long); 1024]);
        assert_eq!(text.map(|text| text.len()), Ok(1024 * long.len()));
    }

    #[test]
    fn template_errors_are_reported_without_panics() {
        let bad = ChatTemplate::new("{% for %}", SpecialTokens::default()).expect_err("no Jinja");
        assert!(
            bad.to_string().contains("chat template cannot be parsed"),
            "{bad}"
        );
        let template = ChatTemplate::new(
            "{{ raise_exception('no such role') }}",
            SpecialTokens::default(),
        );
        let error = template.expect("understood").render(&[user("secret")]);
        assert_eq!(error, Err(PromptError::Refused("no such role".to_owned())));
        let template = ChatTemplate::new("{{ strftime_now('%Q') }}", SpecialTokens::default());
        template
            .expect("understood")
            .render(&[user("a")])
            .expect_err("bad format");
    }
}
