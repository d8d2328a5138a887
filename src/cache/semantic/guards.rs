//! Differences between two questions that forbid reusing one's answer for the other.
//!
//! Embeddings hardly change with a number, a "not" or two swapped names. Each guard looks for one such
//! difference and forbids reuse when it finds one or cannot rule it out. They read English; for other
//! languages only the guards on numbers, names and words apply, and forbid more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use super::{
    antonyms::ANTONYMS,
    lexicon::{
        DATES, DEICTICS, FILLERS, NEGATING_PREFIXES, NEGATIONS, NUMBERS, ORDER_FREE, SYNONYMS,
        UNITS,
    },
};
use crate::prompt::prune::words::{Word, words};

/// Most content words that only one of two paraphrases has.
const EXTRA_WORDS_MAX: usize = 1;
/// Longest question that is compared, in words; longer ones differ in too many ways.
pub const WORDS_MAX: usize = 60;

/// Why an answer is not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Veto {
    /// The cosine is below the threshold.
    Cosine,
    /// The numbers differ.
    Number,
    /// The units differ.
    Unit,
    /// Days, months or times differ.
    Date,
    /// Only one is negated.
    Negation,
    /// A word in one is the opposite of a word in the other.
    Antonym,
    /// Only one has a name.
    Entity,
    /// Their question words differ (who, when, how many).
    QuestionWord,
    /// One refers to something outside of the question ("this", "below", "he").
    Deictic,
    /// The same words in another order.
    WordOrder,
    /// A word was replaced or added, and is no known synonym or filler.
    Words,
    /// They could not be compared.
    Failure,
}

impl Veto {
    /// The name used on the command line.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// True when a guard finds its difference between two questions.
type Guard = fn(&ParsedQuestion, &ParsedQuestion) -> bool;

/// The guards, in the order in which they run.
const GUARDS: [(Veto, Guard); 10] = [
    (Veto::Number, |a, b| a.numbers != b.numbers),
    (Veto::Unit, |a, b| a.units != b.units),
    (Veto::Date, |a, b| a.dates != b.dates),
    (Veto::Negation, |a, b| {
        a.negations != b.negations || negates(a, b)
    }),
    (Veto::Antonym, opposes),
    (Veto::Entity, |a, b| a.lacks_name(b) || b.lacks_name(a)),
    (Veto::QuestionWord, |a, b| a.asks != b.asks),
    (Veto::Deictic, |a, b| a.points || b.points),
    (Veto::WordOrder, reorders),
    (Veto::Words, differs),
];

/// The first guard that forbids reuse between `a` and `b`; symmetric.
pub fn veto(a: &str, b: &str) -> Option<Veto> {
    first_veto(a, b, |_| true)
}

/// The first of the given guards that finds its difference.
pub(super) fn veto_by(guards: &[Veto], a: &str, b: &str) -> Option<Veto> {
    first_veto(a, b, |veto| guards.contains(&veto))
}

fn first_veto(a: &str, b: &str, is_used: impl Fn(Veto) -> bool) -> Option<Veto> {
    let (a, b) = (ParsedQuestion::read(a), ParsedQuestion::read(b));
    GUARDS
        .into_iter()
        .find(|(veto, differs)| is_used(*veto) && differs(&a, &b))
        .map(|(veto, _)| veto)
}

/// A tokenized question.
#[derive(Debug)]
struct ParsedQuestion {
    /// Lower case, without punctuation.
    tokens: Vec<String>,
    /// Stems of content words, in order.
    content: Vec<String>,
    names: BTreeSet<String>,
    numbers: Vec<String>,
    units: BTreeMap<&'static str, usize>,
    dates: BTreeSet<&'static str>,
    negations: usize,
    asks: BTreeSet<&'static str>,
    points: bool,
}

impl ParsedQuestion {
    fn read(text: &str) -> Self {
        let text = text.replace('’', "'");
        let tokens = tokens(&text);
        let has = |list: &[&str], token: &String| list.contains(&token.as_str());
        let dates = DATES
            .iter()
            .copied()
            .filter(|date| tokens.iter().any(|token| token == date));
        let mut units = BTreeMap::new();
        for unit in tokens.iter().filter_map(|token| unit(token)) {
            *units.entry(unit).or_default() += 1;
        }
        Self {
            content: content(&tokens),
            names: names(&text),
            numbers: numbers(&tokens),
            units,
            dates: dates.collect(),
            negations: tokens
                .iter()
                .filter(|token| has(NEGATIONS, token) || token.ends_with("n't"))
                .count(),
            asks: asks(&tokens),
            points: tokens.iter().any(|token| has(DEICTICS, token)),
            tokens,
        }
    }

    /// True when `other` has a name that this question lacks.
    fn lacks_name(&self, other: &Self) -> bool {
        other.names.iter().any(|name| {
            !self.tokens.contains(name)
                && !self
                    .tokens
                    .iter()
                    .any(|token| are_synonyms(token, name) || kin(token, name))
        })
    }

    /// Tokens that occur more often in this question than in the other.
    fn only(&self, other: &Self) -> Vec<&String> {
        let count =
            |tokens: &[String], token: &String| tokens.iter().filter(|t| *t == token).count();
        let more = |token: &&String| count(&self.tokens, token) > count(&other.tokens, token);
        self.tokens.iter().filter(more).collect()
    }
}

/// Words, numbers, currency and percent signs, in lower case.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let continues = |next: Option<&char>| next.is_some_and(|next| next.is_alphanumeric());
        let is_inner = matches!(character, '.' | ',' | '\'' | ':' | '/')
            && !word.is_empty()
            && continues(characters.peek())
            && (character == '\''
                || word.ends_with(|c: char| c.is_ascii_digit())
                || character == '.');
        // A number and a unit without a space between are two tokens.
        let splits = character.is_alphabetic() && word.ends_with(|c: char| c.is_ascii_digit())
            || character.is_ascii_digit() && word.ends_with(char::is_alphabetic) && word.len() == 1;
        if splits && !word.starts_with(char::is_alphabetic) {
            tokens.push(std::mem::take(&mut word));
        }
        if character.is_alphanumeric() || is_inner {
            if character != ',' {
                word.extend(character.to_lowercase());
            }
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if matches!(character, '%' | '$' | '€' | '£' | '₹' | '¥' | '+') {
            tokens.push(character.to_string());
        }
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    for token in &mut tokens {
        if let Some(owner) = token.strip_suffix("'s") {
            *token = owner.to_owned();
        }
    }
    tokens
}

fn content(tokens: &[String]) -> Vec<String> {
    words(&tokens.join(" "))
        .into_iter()
        .filter(|word| !word.is_function)
        .map(|word| word.stem)
        .collect()
}

fn unit(token: &str) -> Option<&'static str> {
    UNITS
        .iter()
        .find(|names| names.contains(&token))
        .map(|names| names[0])
}

/// Numbers, sorted; `1,000` equals `1000`, `1.0` does not equal `1`.
fn numbers(tokens: &[String]) -> Vec<String> {
    let mut numbers: Vec<String> = tokens
        .iter()
        .filter_map(|token| {
            if token.contains(|c: char| c.is_ascii_digit()) {
                let ordinal = ["st", "nd", "rd", "th"]
                    .iter()
                    .find_map(|end| token.strip_suffix(end));
                return Some(ordinal.unwrap_or(token).to_owned());
            }
            let known = NUMBERS.iter().find(|(word, _)| word == token);
            // A unit may also be a number word ("second"); the guard on units handles it.
            known
                .filter(|_| unit(token).is_none())
                .map(|(_, number)| number.to_string())
        })
        // "One" is as often an article as a number.
        .filter(|number| number != "1")
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Content words with a capital letter, in lower case. A sentence's first word is included, since it may
/// be a name; so are function words in capitals (IT, US, WHO), unless the whole text is in capitals.
fn names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let shouts = !text.contains(char::is_lowercase);
    for run in text.split_whitespace() {
        let word = run.trim_matches(|c: char| !c.is_alphanumeric());
        let word = word.strip_suffix("'s").unwrap_or(word);
        let capital = word.starts_with(char::is_uppercase);
        let inside = word.chars().skip(1).any(char::is_uppercase);
        let says_little = |word: &Word| word.is_function || FILLERS.contains(&word.stem.as_str());
        let is_function = words(word).iter().all(says_little);
        let is_short_name = !shouts && word.len() > 1 && word.chars().all(char::is_uppercase);
        if (capital || inside) && (!is_function || is_short_name) && word.len() > 1 {
            names.extend(tokens(word));
        }
    }
    names
}

/// The question words, normalised.
fn asks(tokens: &[String]) -> BTreeSet<&'static str> {
    let mut asks = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let next = tokens.get(at + 1).map_or("", String::as_str);
        match token.as_str() {
            "who" | "whom" | "whose" => asks.insert("who"),
            "when" => asks.insert("when"),
            "where" => asks.insert("where"),
            "why" => asks.insert("why"),
            "which" => asks.insert("what"),
            "what" | "what's" | "whats" => {
                let rest = tokens[at + 1..].iter().take(5);
                let mut words = rest.map(String::as_str);
                let is_way = words
                    .any(|w| ["way", "ways", "steps", "method", "methods", "tips"].contains(&w));
                asks.insert(if is_way { "how" } else { "what" })
            }
            "how" => asks.insert(match next {
                "many" | "much" => "how many",
                "long" => "how long",
                "old" => "how old",
                "far" => "how far",
                "often" => "how often",
                "tall" | "high" | "big" | "large" | "deep" | "fast" | "heavy" => "how great",
                _ => "how",
            }),
            _ => false,
        };
    }
    asks
}

/// True when a word in one occurs with a negating prefix in the other.
fn negates(a: &ParsedQuestion, b: &ParsedQuestion) -> bool {
    let denied = |plain: &ParsedQuestion, other: &ParsedQuestion| {
        other.only(plain).into_iter().any(|word| {
            NEGATING_PREFIXES.iter().any(|prefix| {
                word.strip_prefix(prefix).is_some_and(|rest| {
                    rest.len() >= 3 && plain.tokens.iter().any(|token| token == rest)
                })
            })
        })
    };
    denied(a, b) || denied(b, a)
}

fn opposes(a: &ParsedQuestion, b: &ParsedQuestion) -> bool {
    let (only_a, only_b) = (a.only(b), b.only(a));
    let holds = |list: &[&String], word: &str| {
        let stem = words(word).pop().map(|word| word.stem);
        list.iter()
            .any(|token| token.as_str() == word || words(token).pop().map(|word| word.stem) == stem)
    };
    ANTONYMS.iter().any(|(one, other)| {
        holds(&only_a, one) && holds(&only_b, other) || holds(&only_a, other) && holds(&only_b, one)
    })
}

/// True when the common words come in another order; prepositions such as "from", "to" and "by" count.
fn reorders(a: &ParsedQuestion, b: &ParsedQuestion) -> bool {
    let common = |own: &ParsedQuestion, other: &ParsedQuestion| -> Vec<String> {
        let stays =
            |token: &&String| !ORDER_FREE.contains(&token.as_str()) && other.tokens.contains(token);
        own.tokens.iter().filter(stays).cloned().collect()
    };
    let stems = |own: &ParsedQuestion, other: &ParsedQuestion| -> Vec<String> {
        let stays = |stem: &&String| other.content.contains(stem);
        own.content.iter().filter(stays).cloned().collect()
    };
    common(a, b) != common(b, a) || stems(a, b) != stems(b, a)
}

/// True when content words were replaced or added that are no known synonyms or fillers.
fn differs(a: &ParsedQuestion, b: &ParsedQuestion) -> bool {
    if a.tokens.len() > WORDS_MAX || b.tokens.len() > WORDS_MAX {
        return a.tokens != b.tokens;
    }
    let unmatched = |own: &ParsedQuestion, other: &ParsedQuestion| -> Vec<String> {
        let is_known = |stem: &&String| {
            other
                .content
                .iter()
                .any(|o| *stem == o || kin(stem, o) || are_synonyms(stem, o))
        };
        own.content
            .iter()
            .filter(|stem| !FILLERS.contains(&stem.as_str()) && !is_known(stem))
            .cloned()
            .collect()
    };
    let (of_a, of_b) = (unmatched(a, b), unmatched(b, a));
    !of_a.is_empty() && !of_b.is_empty()
        || of_a.len().max(of_b.len()) > EXTRA_WORDS_MAX
        // An added word that has an opposite changes the question, too.
        || of_a.iter().chain(&of_b).any(|stem| has_antonym(stem))
        || (a.content.is_empty() || b.content.is_empty()) && a.tokens != b.tokens
}

/// True for the stem of a word that has an opposite.
fn has_antonym(stem: &str) -> bool {
    static STEMS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let listed = ANTONYMS.iter().flat_map(|(one, other)| [*one, *other]);
        listed
            .filter_map(|word| words(word).pop().map(|word| word.stem))
            .collect()
    });
    STEMS.contains(stem)
}

/// True for forms of one word: they share all but a few last letters.
fn kin(a: &str, b: &str) -> bool {
    let shared = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    shared >= 4 && shared + 3 >= a.len().max(b.len())
}

fn are_synonyms(a: &str, b: &str) -> bool {
    let means = |word: &str, known: &str| {
        word == known || words(known).pop().is_some_and(|w| w.stem == word)
    };
    SYNONYMS.iter().any(|sense| {
        sense.iter().any(|known| means(a, known)) && sense.iter().any(|known| means(b, known))
    })
}
