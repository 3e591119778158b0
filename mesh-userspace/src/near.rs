//! Names that somebody may have meant who wrote another one.

/// Names that are shown at most.
const SHOWN_MAX: usize = 5;
/// Letters of a word that are looked at.
const LETTERS_MAX: usize = 80;

/// The candidate that was probably meant: alike but for case, or a few letters apart, in proportion to
/// the length of the shorter one.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = candidates.into_iter().map(|c| (distance(&word, c), c)).min()?;
    let letters = word.chars().count().min(near.1.chars().count());
    (near.0 <= 1 + letters / 4).then_some(near.1)
}

/// A few of these, the most alike first, and how many more there are: `web, web2 and 7 more`.
pub fn closest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_cached_key(|name| (distance(word, name), *name));
    let more = match names.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(SHOWN_MAX);
    names.join(", ") + &more
}

/// Letters to add, remove, change, or swap with the next (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let letters = |word: &str| word.chars().take(LETTERS_MAX).collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("web1", "web1"), 0);
        assert_eq!(distance("wbe1", "web1"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("web10", "web1"), 1);
    }

    #[test]
    fn a_guess_is_made_only_for_what_is_close_for_its_length() {
        let keys = ["flood", "cidr", "vni", "underlay"];
        assert_eq!(nearest("foo", keys), None);
        assert_eq!(nearest("flod", keys), Some("flood"));
        assert_eq!(nearest("FLOOD", keys), Some("flood"));
        assert_eq!(nearest("vin", keys), Some("vni"));
        assert_eq!(nearest("undrlai", keys), Some("underlay"));
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_few_names_are_shown_and_the_most_alike_first() {
        let all: Vec<String> = (1..=100).map(|n| format!("web{n}")).collect();
        let shown = closest("web42x", all.iter().map(String::as_str));
        assert!(shown.starts_with("web42, ") && shown.ends_with(" and 95 more"), "{shown}");
        assert_eq!(closest("b", ["a", "b"]), "b, a");
    }
}
