//! Computes [`Counts`].

use super::{
    counts::Counts,
    lexicon::{self, classes_of},
    text::{ParsedPrompt, Token, TokenKind},
};

impl Counts {
    /// Counts a text.
    pub fn of(seen: &ParsedPrompt<'_>) -> Self {
        let mut counts = Self {
            length: (seen.bytes as f32).ln_1p(),
            question_length: (seen.question.len() as f32).ln_1p(),
            ..Self::default()
        };
        counts.count_whole(seen);
        let words = counts.count_words(seen.question, seen.question_tokens());
        counts.count_marks(seen.question);
        counts.count_choices(&seen.choices, &words);
        counts
    }

    fn count_whole(&mut self, seen: &ParsedPrompt<'_>) {
        let (mut capitals, mut digits, mut marks, mut foreign) = (0, 0, 0, 0);
        let (mut code, mut backslashes, mut bars, mut bytes) = (0, 0, 0, 1);
        for byte in seen.parts.iter().flat_map(|part| part.bytes()) {
            bytes += 1;
            match byte {
                b'A'..=b'Z' => capitals += 1,
                b'0'..=b'9' => digits += 1,
                b';' | b'{' | b'}' | b'`' => code += 1,
                b'\\' => backslashes += 1,
                b'|' => bars += 1,
                128.. => foreign += 1,
                _ => {}
            }
            marks += usize::from(byte.is_ascii_punctuation());
        }
        let bytes = bytes as f32;
        self.capitals = capitals as f32 / bytes;
        self.digits = digits as f32 / bytes;
        self.marks = marks as f32 / bytes;
        self.foreign = log(foreign);
        self.code_marks = log(code);
        self.backslashes = log(backslashes);
        self.bars = bars as f32;
    }

    /// Counts the question's words and numbers; returns the distinct words in lower case.
    fn count_words(&mut self, text: &str, tokens: &[Token]) -> Vec<String> {
        let mut of_class = [0_usize; lexicon::COUNT];
        let (mut bytes, mut long, mut letters, mut names) = (0, 0, 0, 0);
        let (mut decimals, mut large, mut largest) = (0, 0, 0.0_f32);
        let mut distinct = Vec::with_capacity(tokens.len());
        let mut numbers = Vec::new();
        let (mut before, mut opens_sentence) = ("", true);
        for token in tokens {
            let piece = &text[token.start..token.end];
            match token.kind {
                TokenKind::Mark => {
                    opens_sentence = matches!(piece, "." | "?" | "!");
                    continue;
                }
                TokenKind::Number => {
                    numbers.push(piece);
                    decimals += usize::from(piece.contains('.'));
                    let value = piece.replace(',', "").parse::<f32>().unwrap_or(0.0);
                    large += usize::from(value >= 100.0);
                    largest = largest.max(value.min(1e30));
                }
                TokenKind::Word => {
                    bytes += piece.len();
                    long += usize::from(piece.len() >= 9);
                    let has_capital = piece.as_bytes()[0].is_ascii_uppercase();
                    names += usize::from(has_capital && piece.len() > 1 && !opens_sentence);
                    let word = piece.to_lowercase();
                    letters += usize::from(word.len() == 1 && word != "a" && word != "i");
                    self.percents += f32::from(u8::from(word == "percent"));
                    let asks_amount = before == "how" && (word == "many" || word == "much");
                    self.how_many += f32::from(u8::from(asks_amount));
                    before = if word == "how" { "how" } else { "" };
                    let mut classes = if word.len() <= lexicon::WORD_BYTES_MAX {
                        classes_of(&word)
                    } else {
                        0
                    };
                    while classes != 0 {
                        of_class[classes.trailing_zeros() as usize] += 1;
                        classes &= classes - 1;
                    }
                    if distinct.is_empty() {
                        self.count_opening(&word);
                    }
                    distinct.push(word);
                }
            }
            opens_sentence = false;
        }
        let words = distinct.len();
        distinct.sort_unstable();
        distinct.dedup();
        let share = |count: usize| count as f32 / (words as f32 + 5.0);
        self.how_many = self.how_many.min(1.0);
        self.words = log(words);
        self.word_length = bytes as f32 / words.max(1) as f32;
        self.long_words = share(long);
        self.variety = share(distinct.len());
        self.letters = log(letters);
        self.names = share(names);
        self.numbers = log(numbers.len());
        self.number_share = share(numbers.len());
        numbers.sort_unstable();
        numbers.dedup();
        self.distinct_numbers = log(numbers.len());
        self.decimals = log(decimals);
        self.large_numbers = large as f32;
        self.largest_number = largest.ln_1p();
        self.following = has(&distinct, "following");
        self.truth = has(&distinct, "true");
        self.statements = has(&distinct, "statement").max(has(&distinct, "statements"));
        self.set_classes(&of_class, share);
        distinct
    }

    fn count_opening(&mut self, word: &str) {
        match word {
            "which" => self.opens_which = 1.0,
            "what" => self.opens_what = 1.0,
            "how" => self.opens_how = 1.0,
            "the" | "a" | "an" => self.opens_article = 1.0,
            "if" => self.opens_if = 1.0,
            _ => {}
        }
    }

    fn set_classes(&mut self, of_class: &[usize], share: impl Fn(usize) -> f32) {
        let shares = [
            (lexicon::MATH, &mut self.math),
            (lexicon::QUANTITY, &mut self.quantity),
            (lexicon::REASONING, &mut self.reasoning),
            (lexicon::ENUMERATION, &mut self.enumeration),
            (lexicon::CONSTRAINT, &mut self.constraint),
            (lexicon::NEGATION, &mut self.negation),
            (lexicon::ROUTINE, &mut self.routine),
            (lexicon::CONDITION, &mut self.condition),
            (lexicon::CODE, &mut self.code),
            (lexicon::HEDGE, &mut self.hedge),
            (lexicon::SCIENCE, &mut self.science),
            (lexicon::LAW, &mut self.law),
            (lexicon::HISTORY, &mut self.history),
            (lexicon::BUSINESS, &mut self.business),
            (lexicon::PERSON, &mut self.person),
            (lexicon::FUNCTION, &mut self.function),
            (lexicon::QUESTION, &mut self.question),
        ];
        for (class, field) in shares {
            *field = share(of_class[class]);
        }
        self.units = log(of_class[lexicon::UNIT]);
        self.math_words = log(of_class[lexicon::MATH]);
        self.quantity_words = log(of_class[lexicon::QUANTITY]);
        self.reasoning_words = log(of_class[lexicon::REASONING]);
        self.constraint_words = log(of_class[lexicon::CONSTRAINT]);
        self.negation_words = log(of_class[lexicon::NEGATION]);
        self.condition_words = log(of_class[lexicon::CONDITION]);
    }

    fn count_marks(&mut self, text: &str) {
        let (mut dollars, mut operators, mut equals, mut open) = (0, 0, 0, 0);
        let (mut underscores, mut quotes, mut lines, mut commas) = (0, 0, 0, 0);
        let (mut percents, mut sentences, mut asked) = (0, 0, 0);
        let mut last = ['\n'; 2];
        for c in text.chars() {
            match c {
                '$' => dollars += 1,
                '=' => (equals, operators) = (equals + 1, operators + 1),
                '+' | '*' | '^' | '<' | '>' | '×' | '÷' | '√' | '≤' | '≥' | '/' => {
                    operators += 1
                }
                '(' => open += 1,
                '_' => underscores += 1,
                '"' | '“' | '\'' => quotes += 1,
                '\n' => lines += 1,
                ',' => commas += 1,
                '%' => percents += 1,
                '?' => asked += 1,
                _ => {}
            }
            let is_fraction = c.is_ascii_digit() && last[0] == '/' && last[1].is_ascii_digit();
            self.fractions += f32::from(u8::from(is_fraction));
            sentences += usize::from(c.is_whitespace() && matches!(last[0], '.' | '?' | '!'));
            last = [c, last[0]];
        }
        sentences += usize::from(matches!(last[0], '.' | '?' | '!'));
        let end = text.trim_end().chars().next_back();
        self.dollars = log(dollars);
        self.operators = log(operators);
        self.equals = log(equals);
        self.parentheses = log(open);
        self.underscores = log(underscores);
        self.quotes = log(quotes);
        self.lines = log(lines);
        self.percents = (self.percents + percents as f32).ln_1p();
        self.question_marks = asked as f32;
        self.sentences = log(sentences);
        let words = self.words.exp_m1();
        self.sentence_length = words / (1 + sentences) as f32;
        self.commas = commas as f32 / (words + 5.0);
        let is_open = !matches!(end, Some('?' | '.' | ':' | '!'));
        self.blank = f32::from(u8::from(is_open || text.contains("___")));
        self.asks = f32::from(u8::from(end == Some('?')));
        self.roman = f32::from(u8::from(text.contains(" II") || text.contains("\nII")));
    }

    fn count_choices(&mut self, choices: &[&str], question: &[String]) {
        if choices.is_empty() {
            return;
        }
        let count = choices.len() as f32;
        let (mut sum, mut squares, mut longest, mut shortest) = (0.0_f32, 0.0_f32, 0, usize::MAX);
        let (mut numeric, mut digits, mut capitals, mut words) = (0.0, 0.0, 0.0, 0);
        let (mut overlap, mut openings) = (0.0, Vec::with_capacity(choices.len()));
        for choice in choices {
            let bytes = choice.len();
            (sum, squares) = (sum + bytes as f32, squares + (bytes * bytes) as f32);
            (longest, shortest) = (longest.max(bytes), shortest.min(bytes));
            let figures = choice.bytes().filter(u8::is_ascii_digit).count();
            numeric += f32::from(u8::from(figures > 0));
            digits += figures as f32 / (bytes + 1) as f32;
            let upper = choice.bytes().filter(u8::is_ascii_uppercase).count();
            capitals += upper as f32 / (bytes + 1) as f32;
            let lower = choice.to_lowercase();
            let (mut own, mut shared) = (0_usize, 0_usize);
            for word in lower.split_ascii_whitespace() {
                own += 1;
                let word = word.trim_matches(|c: char| !c.is_alphanumeric());
                let is_shared = question
                    .binary_search_by(|known| known.as_str().cmp(word))
                    .is_ok();
                shared += usize::from(is_shared);
            }
            words += own;
            overlap += shared as f32 / (own + 1) as f32;
            let others = ["of the above", "of these", "both", "neither"];
            let refers = others.iter().any(|phrase| lower.contains(phrase));
            self.choice_others += f32::from(u8::from(refers));
            let opening = lower.split(' ').next().unwrap_or_default();
            openings.push(opening.to_owned());
        }
        openings.sort_unstable();
        openings.dedup();
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).max(0.0).sqrt();
        self.choices = count;
        self.choice_mean = mean.ln_1p();
        self.choice_longest = log(longest);
        self.choice_shortest = log(shortest);
        self.choice_spread = deviation / (mean + 1.0);
        self.choice_numeric = numeric / count;
        self.choice_digits = digits / count;
        self.choice_capitals = capitals / count;
        self.choice_words = (words as f32 / count).ln_1p();
        self.choice_openings = openings.len() as f32 / count;
        self.choice_overlap = overlap / count;
    }
}

fn log(count: usize) -> f32 {
    (count as f32).ln_1p()
}

fn has(words: &[String], word: &str) -> f32 {
    let found = words.binary_search_by(|known| known.as_str().cmp(word));
    f32::from(u8::from(found.is_ok()))
}

#[cfg(test)]
mod tests {
    use crate::scoring::features::counting::*;

    #[test]
    fn counts_a_question_with_choices() {
        let counts = Counts::of(&ParsedPrompt::of(
            "If Tom has 1,200 apples and sells 3.5% of them, how many are not left?\nA. 42\n(b) both\nSolve it.",
        ));
        assert_eq!(counts.numbers, 2.0_f32.ln_1p());
        assert_eq!(counts.decimals, 1.0_f32.ln_1p());
        assert_eq!(counts.largest_number, 1200.0_f32.ln_1p());
        assert_eq!(counts.percents, 1.0_f32.ln_1p());
        assert_eq!((counts.choices, counts.choice_numeric), (2.0, 0.5));
        assert_eq!((counts.choice_others, counts.choice_openings), (1.0, 1.0));
        assert_eq!(
            (counts.opens_if, counts.how_many, counts.asks),
            (1.0, 1.0, 1.0)
        );
        assert_eq!(counts.negation_words, 1.0_f32.ln_1p());
        assert_eq!(counts.names, 1.0 / 18.0, "Tom, of 13 words");
    }
}
