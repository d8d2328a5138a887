//! The counts of a prompt.

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A prompt's counts. Sizes are `ln(1 + count)`; shares are divided by the question's words
        /// plus 5, so that short questions are not all extreme.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Counts {
            $($(#[doc = $doc])+ pub $name: f32,)+
        }

        impl Counts {
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name)),+].len();
            /// Their names, in order.
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name)),+];

            /// Their values, in order.
            pub fn values(&self) -> [f32; Self::COUNT] {
                [$(self.$name),+]
            }
        }
    };
}

counts! {
    /// Bytes of the last user turn, ln(1 + n).
    length,
    /// Bytes of all other turns, ln(1 + n).
    context,
    /// Turns of the conversation, ln n.
    turns,
    /// Bytes of the question, without the choices, ln(1 + n).
    question_length,
    /// Lines that begin an answer choice.
    choices,
    /// Mean bytes of a choice, ln(1 + n).
    choice_mean,
    /// Bytes of the longest choice, ln(1 + n).
    choice_longest,
    /// Bytes of the shortest choice, ln(1 + n).
    choice_shortest,
    /// Standard deviation of the choices' bytes over their mean plus 1.
    choice_spread,
    /// Share of choices that hold a digit.
    choice_numeric,
    /// Mean share of digits in a choice.
    choice_digits,
    /// Mean share of capitals in a choice.
    choice_capitals,
    /// Mean words of a choice, ln(1 + n).
    choice_words,
    /// Choices that refer to other choices (all of the above, both, neither).
    choice_others,
    /// Share of choices with a distinct first word.
    choice_openings,
    /// Mean share of a choice's words that occur in the question.
    choice_overlap,
    /// Words of the question, ln(1 + n).
    words,
    /// Mean bytes of a word.
    word_length,
    /// Share of words of nine letters and more.
    long_words,
    /// Share of distinct words.
    variety,
    /// Numbers, ln(1 + n).
    numbers,
    /// Share of numbers.
    number_share,
    /// Distinct numbers, ln(1 + n).
    distinct_numbers,
    /// Decimal fractions, ln(1 + n).
    decimals,
    /// The largest number, ln(1 + n).
    largest_number,
    /// Numbers from 100.
    large_numbers,
    /// Per cent signs and words, ln(1 + n).
    percents,
    /// Dollar signs, ln(1 + n).
    dollars,
    /// Fractions of digits.
    fractions,
    /// Operators and relations, ln(1 + n).
    operators,
    /// Equals signs, ln(1 + n).
    equals,
    /// Backslashes, ln(1 + n).
    backslashes,
    /// Opening parentheses, ln(1 + n).
    parentheses,
    /// Underscores, ln(1 + n).
    underscores,
    /// Single letters but a and i, ln(1 + n).
    letters,
    /// Vertical bars.
    bars,
    /// Question marks.
    question_marks,
    /// Sentences, ln(1 + n).
    sentences,
    /// Mean words of a sentence.
    sentence_length,
    /// Share of commas.
    commas,
    /// Share of words with a capital inside a sentence.
    names,
    /// Share of capitals among all bytes.
    capitals,
    /// Share of digits among all bytes.
    digits,
    /// Share of marks among all bytes.
    marks,
    /// Bytes outside ASCII, ln(1 + n).
    foreign,
    /// Quotation marks, ln(1 + n).
    quotes,
    /// Line ends in the question, ln(1 + n).
    lines,
    /// Semicolons, braces and fences, ln(1 + n).
    code_marks,
    /// 1 for fill-in questions: a blank, or an open end.
    blank,
    /// 1 when the question ends in a question mark.
    asks,
    /// 1 when it says `statement`.
    statements,
    /// 1 when items are numbered in Roman figures.
    roman,
    /// 1 when it asks how many or how much.
    how_many,
    /// 1 when it opens with `which`.
    opens_which,
    /// 1 when it opens with `what`.
    opens_what,
    /// 1 when it opens with `how`.
    opens_how,
    /// 1 when it opens with an article.
    opens_article,
    /// 1 when it opens with `if`.
    opens_if,
    /// 1 when it says `following`.
    following,
    /// 1 when it says `true`.
    truth,
    /// Share of words of mathematics.
    math,
    /// Share of words of everyday quantities.
    quantity,
    /// Share of words that ask for reasons.
    reasoning,
    /// Share of words that ask for a list.
    enumeration,
    /// Share of words that constrain the answer.
    constraint,
    /// Share of words that negate the question.
    negation,
    /// Share of words of routine tasks.
    routine,
    /// Share of conditional words.
    condition,
    /// Share of words of programs.
    code,
    /// Share of words that hedge.
    hedge,
    /// Share of words of life and medicine.
    science,
    /// Share of words of law.
    law,
    /// Share of words of history.
    history,
    /// Share of words of business.
    business,
    /// Share of words for people.
    person,
    /// Share of function words.
    function,
    /// Share of question words.
    question,
    /// Units, ln(1 + n).
    units,
    /// Words of mathematics, ln(1 + n).
    math_words,
    /// Words of everyday quantities, ln(1 + n).
    quantity_words,
    /// Words that ask for reasons, ln(1 + n).
    reasoning_words,
    /// Words that constrain the answer, ln(1 + n).
    constraint_words,
    /// Words that negate the question, ln(1 + n).
    negation_words,
    /// Conditional words, ln(1 + n).
    condition_words,
}
