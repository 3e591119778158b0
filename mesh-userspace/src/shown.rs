//! Text that comes from others, such as processes, containers and nodes, as it is shown to people.

/// One line of at most `most` characters, without signs that a terminal heeds.
pub fn plain(text: &str, most: usize) -> String {
    let mut plain: String =
        text.chars().take(most + 1).map(|c| if is_heeded(c) { '?' } else { c }).collect();
    if let Some((at, _)) = plain.char_indices().nth(most) {
        plain.truncate(at);
        plain.pop();
        plain.push('…');
    }
    plain
}

/// Controls, line ends, and marks that turn the direction of writing (UAX 9).
fn is_heeded(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_with_an_end() {
        assert_eq!(plain("web: ü…", 120), "web: ü…");
        assert_eq!(plain("\x1b[31mok\nagent\u{202e}", 120), "?[31mok?agent?");
        assert_eq!(plain("12345", 5), "12345");
        assert_eq!(plain("123456", 5), "1234…");
    }
}
