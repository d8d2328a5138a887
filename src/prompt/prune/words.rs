//! Word splitting and stemming for pruning: lower-case stems of letters and digits.

/// Stop words, including question words.
pub const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "after", "again", "all", "an", "and", "any", "are", "as", "at", "be", "been",
    "before", "being", "between", "both", "but", "by", "called", "came", "can", "come", "could",
    "did", "do", "does", "done", "down", "during", "each", "few", "first", "for", "from", "get",
    "given", "got", "had", "has", "have", "having", "he", "her", "here", "him", "his", "how", "i",
    "if", "in", "into", "is", "it", "its", "know", "known", "many", "may", "me", "mean", "means",
    "might", "more", "most", "much", "must", "my", "name", "named", "no", "nor", "not", "of",
    "off", "on", "once", "one", "or", "other", "our", "out", "over", "own", "place", "same",
    "shall", "she", "should", "so", "some", "such", "take", "than", "that", "the", "their", "them",
    "then", "there", "these", "they", "this", "those", "through", "to", "too", "two", "under",
    "up", "use", "used", "very", "was", "we", "were", "what", "when", "where", "which", "while",
    "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
];

/// Suffixes and their replacements; the first that matches and leaves three letters is applied. Lighter
/// than Porter's stemmer and meant for comparison only.
const ENDINGS: &[(&str, &str)] = &[
    ("ational", "ate"),
    ("ization", "ize"),
    ("fulness", "ful"),
    ("iveness", "ive"),
    ("ements", ""),
    ("ations", "ate"),
    ("ement", ""),
    ("ments", ""),
    ("ation", "ate"),
    ("ities", ""),
    ("ingly", ""),
    ("edly", ""),
    ("ment", ""),
    ("ness", ""),
    ("ions", ""),
    ("ings", ""),
    ("ion", ""),
    ("ity", ""),
    ("ies", "y"),
    ("ied", "y"),
    ("ing", ""),
    ("ers", ""),
    ("ors", ""),
    ("est", ""),
    ("er", ""),
    ("or", ""),
    ("ed", ""),
    ("es", ""),
    ("ly", ""),
    ("al", ""),
    ("s", ""),
    ("e", ""),
];

/// A word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its stem.
    pub stem: String,
    /// True for a stop word.
    pub is_function: bool,
}

/// The words of a text, in order.
pub fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::with_capacity(text.len() / 6);
    for run in text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’') {
        let run = run.trim_matches(['\'', '’']);
        // The possessive is not part of a name.
        let run = run
            .strip_suffix("'s")
            .or_else(|| run.strip_suffix("’s"))
            .unwrap_or(run);
        if run.is_empty() {
            continue;
        }
        if run.chars().any(is_ideograph) {
            // Scripts without spaces: every pair of neighbouring characters is a word.
            let characters: Vec<char> = run.chars().collect();
            words.extend(
                characters
                    .windows(2.min(characters.len()))
                    .map(|pair| Word {
                        stem: pair.iter().collect(),
                        is_function: false,
                    }),
            );
            continue;
        }
        for part in run.split(['\'', '’']).filter(|part| !part.is_empty()) {
            let lower = part.to_lowercase();
            words.push(Word {
                is_function: FUNCTION_WORDS.binary_search(&lower.as_str()).is_ok(),
                stem: stem(lower),
            });
        }
    }
    words
}

fn is_ideograph(character: char) -> bool {
    matches!(character, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{0e00}'..='\u{0e7f}')
}

fn stem(word: String) -> String {
    if word.len() <= 3 || !word.is_ascii() || word.bytes().any(|byte| byte.is_ascii_digit()) {
        return word;
    }
    let mut stem = word;
    for (ending, stands) in ENDINGS {
        if let Some(rest) = stem.strip_suffix(ending)
            && rest.len() + stands.len() >= 3
        {
            stem = format!("{rest}{stands}");
            break;
        }
    }
    if stem.len() > 3 && stem.ends_with('e') {
        stem.pop();
    }
    let bytes = stem.as_bytes();
    let doubled = bytes.len() > 3
        && bytes[bytes.len() - 1] == bytes[bytes.len() - 2]
        && !stem.ends_with(['s', 'l']);
    if doubled {
        stem.pop();
    }
    if stem.len() > 3 && stem.ends_with('y') {
        stem.pop();
        stem.push('i');
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_word_have_one_stem() {
        for forms in [
            &["filmed", "filming", "films", "film"][..],
            &["planned", "planning", "plans"],
            &["city", "cities"],
            &["create", "created", "creation", "creating"],
            &["Ada's", "Ada", "Ada’s"],
        ] {
            let stems: Vec<_> = forms
                .iter()
                .map(|form| words(form).remove(0).stem)
                .collect();
            assert!(
                stems.windows(2).all(|pair| pair[0] == pair[1]),
                "{forms:?} {stems:?}"
            );
        }
        assert_eq!(words("日本語").len(), 2);
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(FUNCTION_WORDS.is_sorted());
    }
}
