use proptest::prelude::*;

use super::*;
use crate::prompt::estimate_tokens;

fn cleaned(text: &str) -> (String, Kind) {
    let cleaned = clean(text, "");
    (cleaned.text.into_owned(), cleaned.kind)
}

fn share_cut(text: &str) -> f64 {
    let after = estimate_tokens(&clean(text, "").text);
    1.0 - after as f64 / estimate_tokens(text) as f64
}

const PAGES: [(&str, &[&str]); 3] = [
    (
        include_str!("../../../tests/fixtures/pages/news.html"),
        &[
            "# Tram line approved",
            "By Tom Reyes 11 March 2024, 18:04",
            "A tram at the harbour",
            "by 31 votes to 12",
            "April 2025 and is to cost £184.5\u{a0}million.",
            "“We have waited for this since 1998,” said Mayor Ines Calder.",
            "42,000 passengers",
            "£9,000",
            "© 2024 Example Ltd.",
        ],
    ),
    (
        include_str!("../../../tests/fixtures/pages/shop.html"),
        &[
            "Item | Name | Price in € | Delivery\n",
            "HX-200 | Heat pump, 5 kW | 2,149.00 | In stock\n",
            "HX-310 | Heat pump, 8 kW | 2,890.50 | 3 weeks\n",
            "TS-04 | Room thermostat | 79.90 | In stock\n",
            "39.00\u{a0}€, free above 1,500\u{a0}€.",
        ],
    ),
    (
        include_str!("../../../tests/fixtures/pages/docs.html"),
        &[
            "02:30 UTC",
            "35 days",
            // Preformatted lines keep every space.
            "yard  backup --target  s3://bucket/a\n    --keep 35   # days\n",
            "three times, ten minutes apart; after that backup.failed is sent.",
            "- Full backups: Sundays\n- Increments: all other days\n",
        ],
    ),
];

#[test]
fn pages_become_their_text_and_lose_85_percent() {
    for (page, said) in PAGES {
        for (before, after) in [("", ""), ("Summarise this HTML page:\n\n", "\nThank you.")] {
            let text = format!("{before}{page}{after}");
            let (out, kind) = cleaned(&text);
            assert_eq!(kind, Kind::Html);
            assert!(out.starts_with(before) && out.ends_with(after), "{out}");
            let mut rest = out.as_str();
            for words in said {
                let at = rest
                    .find(words)
                    .unwrap_or_else(|| panic!("{words:?} in order in {out}"));
                rest = &rest[at + words.len()..];
            }
            assert!(!out.contains(['<', '{']) && !out.contains("gtag"), "{out}");
            assert!(share_cut(&text) >= 0.85, "only {:.3}", share_cut(&text));
        }
    }
}

#[test]
fn pretty_json_loses_25_percent() {
    let value = serde_json::json!({"orders": (0..40).map(|at| serde_json::json!({
        "id": at, "customer": {"name": "Ada  Lovelace", "city": "London"},
        "lines": [{"sku": "HX-200", "price": 2149.5, "paid": true}, {"sku": "TS-04", "price": 79.9, "paid": false}],
    })).collect::<Vec<_>>()});
    let pretty = serde_json::to_string_pretty(&value).expect("JSON");
    let text = format!("Which order is not paid?\n\n{pretty}\n");
    let (out, kind) = cleaned(&text);
    assert_eq!(kind, Kind::Json);
    assert_eq!(out, format!("Which order is not paid?\n\n{value}\n"));
    assert!(share_cut(&text) >= 0.25, "only {:.3}", share_cut(&text));
}

#[test]
fn code_and_quotations_and_questions_of_form_stay() {
    let page = PAGES[0].0;
    for (text, kind) in [
        (
            format!("Return the HTML with a new title:\n{page}"),
            Kind::Verbatim,
        ),
        (format!("List all links.\n{page}"), Kind::Verbatim),
        ("Keep the layout:\n\n\n\nx".to_owned(), Kind::Verbatim),
        (
            "def f(x):\n    return {  }\n\n\n\nx  =  1\ny  =  2".to_owned(),
            Kind::Code,
        ),
        (
            "const a = {\n  \"b\": 1\n};\nrun(a);\n\n\n\nend".to_owned(),
            Kind::Code,
        ),
        (
            "What is it?\n```html\n<div><p>a</p></div>\n\n\n\n```\n".to_owned(),
            Kind::Text,
        ),
        (
            "What is it?\n~~~\n{\n  \"a\": 1\n}\n".to_owned(),
            Kind::Text,
        ),
        (
            "Sum up:\n\"\"\"\n{\n  \"a\":   1\n}\n\n\n\n\"\"\"\n".to_owned(),
            Kind::Text,
        ),
        (
            "{% for a in b %}<p>{{ a }}</p>{% endfor %}<div></div><ul><li></li></ul>".to_owned(),
            Kind::Text,
        ),
        (
            "Use `<div>` and `<p>` within `<body>`, `</p>`, `</div>`, `</body>`.".to_owned(),
            Kind::Text,
        ),
    ] {
        assert_eq!(cleaned(&text), (text, kind));
    }
}

/// Eight times the text must not take sixty-four times as long.
#[test]
fn texts_made_to_be_slow_are_not() {
    let fastest = |text: &str| {
        let time = |_| {
            let begun = std::time::Instant::now();
            clean(text, "");
            begun.elapsed().as_secs_f64()
        };
        (0..3).map(time).fold(f64::MAX, f64::min)
    };
    for part in [
        "<svg>", "<!--", "<a ='", "{\"a\":", "[", "```", "&", "|", "`<p>`",
    ] {
        let (short, long) = (
            part.repeat(8_000 / part.len()),
            part.repeat(64_000 / part.len()),
        );
        let (brief, lengthy) = (fastest(&short), fastest(&long));
        // What takes no time at all is measured badly, and is no danger.
        let ratio = lengthy / brief;
        assert!(
            ratio < 32.0 || lengthy < 0.5,
            "{part:?}: {ratio:.1} times as long"
        );
    }
}

/// Lines of code with spaces and blank lines that mean something.
fn code() -> impl Strategy<Value = String> {
    prop::collection::vec(
        "[ \t]{0,8}[a-z<>{}\\[\\]=:;\"&|*#-][ -_a-~]{0,20}[ \t]{0,3}|",
        1..8,
    )
    .prop_map(|lines| lines.join("\n") + "\n")
    .prop_filter("a line of quotes closes nothing here", |code| {
        !code.contains("'''") && !code.contains("\"\"\"")
    })
}

fn prose() -> impl Strategy<Value = String> {
    prop::collection::vec("[A-Z][a-z ]{3,40}[.!]  ?(\n){1,5}", 0..4)
        .prop_map(|lines| lines.concat())
}

proptest! {
    /// Fenced code comes out byte for byte, whatever stands around it.
    #[test]
    fn fenced_code_is_untouched(before in prose(), code in code(), after in prose()) {
        let fenced = format!("\n```\n{code}```\n");
        let (out, _) = cleaned(&format!("{before}{fenced}{after}"));
        prop_assert!(out.contains(&fenced[1..]), "{out:?}");
    }

    /// Indented code comes out byte for byte.
    #[test]
    fn indented_code_is_untouched(before in prose(), lines in prop::collection::vec("[ -~]{0,30}", 1..6), after in prose()) {
        let code: String = lines.iter().map(|line| format!("    x{line}\n")).collect();
        let (out, _) = cleaned(&format!("{before}\n{code}\n{after}"));
        prop_assert!(out.contains(&code), "{out:?}");
    }

    /// Words of prose stay, in order.
    #[test]
    fn words_of_prose_stay(text in prose()) {
        let (out, _) = cleaned(&text);
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        prop_assert_eq!(words(&text), words(&out));
    }

    /// Nothing that is no text makes it fail, and cleaning again changes nothing.
    #[test]
    fn any_text_is_cleaned_once(text in "([<>/a-z{}\\[\\]\",: &;#=!\n`|.é-]|<p>|</p>|<div class=|<pre>|</pre>|<td>|\\{\"a\": ?1\\}|    |\n\n){0,60}") {
        let (once, kind) = cleaned(&text);
        let (twice, _) = cleaned(&once);
        // What a page quotes as preformatted text may be markup itself.
        prop_assume!(kind != Kind::Html);
        prop_assert_eq!(once, twice);
    }
}
