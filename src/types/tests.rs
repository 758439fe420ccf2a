//! Values keep what their constructors promise.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn prompt(text: &str) -> Prompt {
    Prompt::new(text, 10_000).unwrap()
}

#[test]
fn prompts_differ_only_where_a_reader_would_see_it() {
    let check = |a: &str, b: &str, equal: bool| assert_eq!(prompt(a) == prompt(b), equal, "{a:?} and {b:?}");
    check("caf\u{e9}", "cafe\u{301}", true);
    check("  a question\r\n", "a question", true);
    check("line\r\nline", "line\nline", true);
    check("line\rline", "line\nline", true);
    check("A question", "a question", false);
    check("a  question", "a question", false);
    check("a\0question", "aquestion", false);
    check("\u{202e}a question", "a question", false);
    assert_eq!(Prompt::new(" \t\r\n\u{a0}", 100).unwrap_err().field_name(), "prompt");
    assert_eq!(Prompt::new("12345", 4).unwrap_err().field_name(), "prompt");
}

#[test]
fn namespaces_hold_no_character_that_means_something_to_a_store() {
    for name in ["a", "A-b_c.d", &"n".repeat(64)] {
        assert_eq!(Namespace::new(name).unwrap().as_str(), name);
    }
    for name in ["", "a b", "a{b}", "a*", "a:b", "a/b", "é", "a\n", "a\0", &"n".repeat(65)] {
        assert_eq!(Namespace::new(name).unwrap_err().field_name(), "namespace", "{name:?}");
    }
}

#[test]
fn private_texts_do_not_show_in_debug_prints() {
    let attributes = Attributes::new([("tier".to_owned(), "secret value".to_owned())], 1).unwrap();
    let shown = format!("{:?} {attributes:?}", prompt("a secret question"));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn vectors_without_a_direction_are_refused() {
    for values in [vec![], vec![0.0; 3], vec![1e-9; 3], vec![f32::NAN, 1.0], vec![1.0, f32::INFINITY]] {
        assert_eq!(Vector::new(values.clone()).unwrap_err().field_name(), "vector", "{values:?}");
    }
    let large = Vector::new(vec![f32::MAX, f32::MAX]).unwrap();
    assert!((large.as_slice()[0] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-6, "large components do not overflow");
    assert!(Vector::from_le_bytes(&[0; 7], 2).is_err());
    let mut poisoned = large.to_le_bytes();
    poisoned[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Vector::from_le_bytes(&poisoned, 2).is_err());
}

#[test]
fn similarities_are_numbers_within_bounds() {
    assert!(Similarity::new(f32::NAN).is_none());
    assert!((Similarity::from_distance(-1e-7).unwrap().get() - 1.0).abs() < f32::EPSILON);
    assert!((Similarity::from_distance(2.1).unwrap().get() + 1.0).abs() < f32::EPSILON);
}

/// Texts made of the characters that separate things elsewhere.
fn crafted() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec!["a", "b", "=", "|", ",", "\0", "\n", "{", "}", "é", "\u{202e}"]),
        1..6,
    )
    .prop_map(|parts| parts.concat())
}

fn pairs() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[ab=]{0,2}", crafted(), 0..3)
}

proptest! {
    /// A wrong key hands out somebody else's answer: two keys are equal only if all parts are.
    #[test]
    fn keys_are_equal_only_if_all_parts_are(a in crafted(), b in crafted(), left in pairs(), right in pairs()) {
        let (a, b) = (Prompt::stored(a), Prompt::stored(b));
        let (left, right) = (Attributes::stored(left), Attributes::stored(right));
        let same = a == b && left == right;
        prop_assert_eq!(EntryId::derive(&a, &left) == EntryId::derive(&b, &right), same);
        prop_assert_eq!(left.token() == right.token(), left == right);
    }

    #[test]
    fn normalising_twice_changes_nothing(text in "\\PC{0,40}[\r\n\t ]{0,3}") {
        if let Ok(once) = Prompt::new(&text, 10_000) {
            let twice = Prompt::new(once.as_str(), 10_000).unwrap();
            prop_assert_eq!(once, twice);
        }
    }

    #[test]
    fn a_stored_vector_comes_back_to_the_bit(values in prop::collection::vec(-1.0f32..1.0, 1..64)) {
        if let Ok(vector) = Vector::new(values) {
            let norm: f32 = vector.as_slice().iter().map(|v| v * v).sum::<f32>().sqrt();
            prop_assert!((norm - 1.0).abs() < 1e-5);
            prop_assert_eq!(&Vector::from_le_bytes(&vector.to_le_bytes(), vector.dimension()).unwrap(), &vector);
        }
    }

    #[test]
    fn ids_are_read_as_they_are_written(bytes in any::<[u8; 20]>()) {
        let id = EntryId::from_bytes(&bytes).unwrap();
        prop_assert_eq!(id.to_string().parse::<EntryId>().unwrap(), id);
    }
}
