//! Classes of words, independent of a prompt's subject.

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $class:ident = $bit:literal: $words:literal,)+) => {
        $($(#[doc = $doc])+ pub const $class: usize = $bit;)+

        /// Every class and its words.
        const CLASSES: &[(usize, &str)] = &[$(($bit, $words)),+];
    };
}

classes! {
    /// Mathematics and physics.
    MATH = 0: "solve equation integral derivative prove probability matrix theorem polynomial function average percent ratio sum product remainder square root mean variance standard deviation calculate compute determine find evaluate velocity energy mass force pressure temperature volume angle vector group ring field finite prime integer real value",
    /// Quantities of word problems.
    QUANTITY = 1: "each every per total left remaining altogether twice half double triple third quarter times many much more less fewer than another rest cost costs price pay sold buys earn hours minutes days weeks month year",
    /// Asking for reasons.
    REASONING = 2: "why explain compare contrast analyse analyze derive justify design plan optimise optimize reason reasoning step steps argue deduce infer critique because therefore implies conclude",
    /// Asking for a list.
    ENUMERATION = 3: "list name enumerate identify state give describe outline all",
    /// Constraints on the answer.
    CONSTRAINT = 4: "must exactly least most without only except not never none neither nor cannot best primarily",
    /// Negations.
    NEGATION = 5: "not except never false incorrect least none cannot neither nor without",
    /// Tasks that small models do well.
    ROUTINE = 6: "classify sentiment extract translate summarise summarize label hello hi thanks rewrite spell capital tag intent",
    /// Conditions.
    CONDITION = 7: "if when unless suppose assume given then whenever let whether",
    /// Programs.
    CODE = 8: "def fn class import struct select const python rust javascript sql regex algorithm compile debug int char void return array pointer program compiler",
    /// Hedges.
    HEDGE = 9: "may might could would should can likely possible typically usually often generally sometimes",
    /// Life and medicine.
    SCIENCE = 10: "cell cells gene dna protein acid reaction enzyme blood patient disease muscle nerve bone hormone virus bacteria infection drug treatment",
    /// Law.
    LAW = 11: "court law legal state act contract liability plaintiff defendant rights treaty international constitution",
    /// History.
    HISTORY = 12: "century war empire king revolution treaty political government society culture ancient",
    /// Business.
    BUSINESS = 13: "price market demand supply cost tax income profit firm rate money interest dollars inflation",
    /// People.
    PERSON = 14: "he she his her they their him them",
    /// Function words.
    FUNCTION = 15: "the a an this that these those of",
    /// Question words.
    QUESTION = 16: "which what how who where when why",
    /// Units.
    UNIT = 17: "m kg s cm mm km ft in lb g mol k c f atm psi hz v w j n pa ml l ev mev nm btu hp rpm ohm ohms volts amperes watts joules meters feet inches seconds minutes hours degrees percent cal kcal",
}

/// How many classes there are.
pub const COUNT: usize = CLASSES.len();

/// Longest listed word, in bytes.
pub const WORD_BYTES_MAX: usize = 16;

/// The classes of a word in lower case, a bit for each.
pub fn classes_of(word: &str) -> u32 {
    WORDS
        .binary_search_by(|(listed, _)| (*listed).cmp(word))
        .map_or(0, |at| WORDS[at].1)
}

/// Every listed word with its classes, ascending.
static WORDS: std::sync::LazyLock<Vec<(&'static str, u32)>> = std::sync::LazyLock::new(|| {
    let mut words: std::collections::BTreeMap<&str, u32> = std::collections::BTreeMap::new();
    for (bit, list) in CLASSES {
        for word in list.split_ascii_whitespace() {
            *words.entry(word).or_default() |= 1 << bit;
        }
    }
    words.into_iter().collect()
});

#[cfg(test)]
mod tests {
    use crate::scoring::features::lexicon::*;

    #[test]
    fn a_word_may_be_of_several_classes() {
        assert_eq!(classes_of("without"), 1 << CONSTRAINT | 1 << NEGATION);
        assert_eq!(classes_of("zebra"), 0);
        assert!(WORDS.iter().all(|(word, _)| word.len() <= WORD_BYTES_MAX));
        let bits: Vec<_> = CLASSES.iter().map(|(bit, _)| *bit).collect();
        assert_eq!(bits, (0..COUNT).collect::<Vec<_>>());
    }
}
