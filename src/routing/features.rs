//! What can be seen of a prompt without a tokenizer: some twenty counts, in microseconds.

use serde_json::{Map, Value};

use crate::job::{ChatRequest, Role};

/// Changes whenever the same text would give other features; weights name the one they were fitted to.
pub const FEATURES_VERSION: u32 = 1;

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A prompt's features. Counts enter the score as `ln(1 + count)`.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Features {
            $($(#[doc = $doc])+ pub $name: f64,)+
            /// The caller's own tags.
            pub tags: Vec<String>,
        }

        impl Features {
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name)),+].len();
            /// Their names, in order.
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name)),+];

            /// Their values, in order.
            pub fn values(&self) -> [f64; Self::COUNT] {
                [$(self.$name),+]
            }
        }
    };
}

features! {
    /// Characters of the last user turn.
    chars,
    /// Characters of everything before it.
    context_chars,
    /// Words of the last user turn.
    words,
    /// Turns of the conversation.
    turns,
    /// Question marks.
    questions,
    /// Runs of digits.
    numbers,
    /// Operators and relation signs between numbers or letters.
    operators,
    /// Words of mathematics.
    math_words,
    /// Marks of program text: fences, braces, semicolons, keywords.
    code_marks,
    /// Verbs that ask for reasoning.
    reasoning_words,
    /// Words that bind the answer: must, exactly, at least, without.
    constraint_words,
    /// Words of tasks that small models do well: classify, extract, translate.
    routine_words,
    /// Lines that open an answer choice.
    choices,
    /// Words of ten letters and more.
    long_words,
    /// Characters outside ASCII.
    foreign_chars,
    /// Conditional words: if, when, unless, suppose.
    conditional_words,
}

impl Features {
    /// Reads the features of a request.
    pub fn of(request: &ChatRequest) -> Self {
        let last_user = request
            .messages
            .iter()
            .rposition(|message| message.role == Role::User)
            .unwrap_or(request.messages.len() - 1);
        let context_chars: usize = request
            .messages
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != last_user)
            .map(|(_, message)| message.content.len())
            .sum();
        Self {
            context_chars: context_chars as f64,
            turns: request.messages.len() as f64,
            ..Self::of_text(&request.messages[last_user].content)
        }
    }

    /// Adds the caller's own tags.
    #[must_use]
    pub fn with_tags<'a>(mut self, tags: impl IntoIterator<Item = &'a str>) -> Self {
        self.tags.extend(tags.into_iter().map(str::to_owned));
        self
    }

    /// Reads the features of a single text.
    pub fn of_text(text: &str) -> Self {
        let mut features = Self {
            turns: 1.0,
            ..Self::default()
        };
        features.count_chars(text);
        features.choices = text.lines().filter(|line| is_choice(line)).count() as f64;
        let mut word = String::with_capacity(24);
        for piece in text.split(|c: char| !c.is_alphanumeric() && c != '\'') {
            if piece.is_empty() {
                continue;
            }
            features.words += 1.0;
            if piece.len() >= 10 {
                features.long_words += 1.0;
            }
            // Every listed word is shorter than this.
            if piece.len() <= 16 {
                word.clear();
                word.extend(piece.chars().map(|c| c.to_ascii_lowercase()));
                features.count_word(&word);
            }
        }
        features
    }

    fn count_chars(&mut self, text: &str) {
        let mut in_number = false;
        for c in text.chars() {
            self.chars += 1.0;
            let is_digit = c.is_ascii_digit();
            if is_digit && !in_number {
                self.numbers += 1.0;
            }
            // Thousands separators and decimal points do not end a number.
            in_number = is_digit || (in_number && matches!(c, '.' | ','));
            match c {
                '?' | '？' => self.questions += 1.0,
                '+' | '=' | '*' | '/' | '^' | '<' | '>' | '×' | '÷' | '√' | '≤' | '≥' | '%' =>
                {
                    self.operators += 1.0;
                }
                '{' | '}' | ';' | '`' | '\\' => self.code_marks += 1.0,
                _ => {}
            }
            if !c.is_ascii() {
                self.foreign_chars += 1.0;
            }
        }
    }

    fn count_word(&mut self, word: &str) {
        let counter = match word {
            "solve" | "equation" | "integral" | "derivative" | "prove" | "probability"
            | "matrix" | "theorem" | "polynomial" | "function" | "average" | "percent"
            | "ratio" | "total" | "sum" | "product" | "remainder" | "square" | "root"
            | "velocity" | "energy" => &mut self.math_words,
            "def" | "fn" | "class" | "import" | "struct" | "select" | "const" | "python"
            | "rust" | "javascript" | "sql" | "regex" | "algorithm" | "compile" | "debug" => {
                &mut self.code_marks
            }
            "why" | "explain" | "compare" | "contrast" | "analyse" | "analyze" | "derive"
            | "justify" | "evaluate" | "design" | "plan" | "optimise" | "optimize" | "reason"
            | "reasoning" | "step" | "steps" | "argue" | "deduce" | "infer" | "critique" => {
                &mut self.reasoning_words
            }
            "must" | "exactly" | "least" | "most" | "without" | "only" | "except" | "not"
            | "never" | "each" | "every" | "all" => &mut self.constraint_words,
            "classify" | "sentiment" | "extract" | "translate" | "summarise" | "summarize"
            | "label" | "hello" | "hi" | "thanks" | "rewrite" | "spell" | "capital" | "tag"
            | "intent" | "list" => &mut self.routine_words,
            "if" | "when" | "unless" | "suppose" | "assume" | "given" | "then" => {
                &mut self.conditional_words
            }
            _ => return,
        };
        *counter += 1.0;
    }

    /// The features by name, as they are kept with the job.
    pub fn to_json(&self) -> Value {
        let pairs = Self::NAMES.iter().zip(self.values());
        Value::Object(
            pairs
                .filter(|(_, value)| *value != 0.0)
                .map(|(name, value)| ((*name).to_owned(), Value::from(value)))
                .collect::<Map<_, _>>(),
        )
    }
}

/// True for `A. …`, `(b) …`, `3) …`.
fn is_choice(line: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix('(').unwrap_or(line);
    let mut chars = line.chars();
    let (Some(label), Some(close)) = (chars.next(), chars.next()) else {
        return false;
    };
    let is_label = matches!(label, 'A'..='J' | 'a'..='j' | '1'..='9');
    is_label && matches!(close, '.' | ')' | ':') && chars.next().is_none_or(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_there() {
        let features = Features::of_text(
            "If Tom has 1,200 apples and sells 3.5% of them, why?\nA. 42\n(b) 7\nSolve it step by step.",
        );
        assert_eq!(features.numbers, 4.0);
        assert_eq!(features.choices, 2.0);
        assert_eq!(features.questions, 1.0);
        assert_eq!(features.operators, 1.0);
        assert_eq!(features.conditional_words, 1.0);
        assert_eq!(features.reasoning_words, 3.0);
        assert_eq!(features.math_words, 1.0);
    }

    #[test]
    fn separates_the_last_turn_from_its_context() {
        let body = br#"{"messages":[{"role":"system","content":"1234"},{"role":"user","content":"ab"},{"role":"assistant","content":"x"}]}"#;
        let request = crate::job::Submission::parse(body, &crate::job::RequestLimits::default())
            .expect("valid")
            .request;
        let features = Features::of(&request);
        assert_eq!(
            (features.chars, features.context_chars, features.turns),
            (2.0, 5.0, 3.0)
        );
    }
}
