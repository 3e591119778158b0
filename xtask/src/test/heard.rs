//! What is to be told again at the end of what a test binary printed: the reasons of tests that
//! skipped, and of those that failed.

/// How a test that skips itself says why, at the start of a line.
const SKIP: &str = "SKIP: ";
/// Lines of a panic's message that are told again. The rest, logs above all, is where it was printed.
const LINES: usize = 6;

/// Takes the lines that a test binary prints with `--show-output`, one after the other.
#[derive(Default)]
pub struct Heard {
    skips: Vec<String>,
    /// Of each failed test its name and the panic's message.
    failures: Vec<(String, Vec<String>)>,
    at: At,
}

/// Where in the output the next line is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    Elsewhere,
    /// After the heading of the failed tests.
    Failures,
    /// In what one of them printed before it failed.
    Test,
    /// In the message of its panic.
    Panic,
}

impl Heard {
    pub fn line(&mut self, line: &str) {
        if let Some(why) = line.strip_prefix(SKIP) {
            self.skips.push(why.to_owned());
        }
        self.at = match (line, self.at) {
            ("failures:", _) => At::Failures,
            ("successes:", _) => At::Elsewhere,
            (_, At::Elsewhere) => At::Elsewhere,
            (_, at) => match of_test(line) {
                Some(name) => {
                    self.failures.push((name.to_owned(), Vec::new()));
                    At::Test
                }
                None => self.in_test(line, at),
            },
        };
    }

    fn in_test(&mut self, line: &str, at: At) -> At {
        let is_new = line.starts_with("thread '") && line.contains(" panicked at ");
        let Some((_, said)) = self.failures.last_mut() else { return at };
        match at {
            // The first: a thread that waited for one that panicked often panics next.
            At::Test if is_new && said.is_empty() => At::Panic,
            At::Panic if ends_message(line) || said.len() == LINES => At::Test,
            At::Panic if !line.is_empty() => {
                said.push(line.to_owned());
                At::Panic
            }
            at => at,
        }
    }

    /// Each once: many tests skip for one reason.
    pub fn skips(&self) -> Vec<String> {
        let mut skips = self.skips.clone();
        skips.sort_unstable();
        skips.dedup();
        skips
    }

    /// A line for each failed test, those of its message below it; empty if the binary did not say.
    pub fn failures(&self) -> String {
        let line =
            |(name, said): &(String, Vec<String>)| format!("\n{name}: {}", said.join("\n  "));
        self.failures.iter().map(line).collect()
    }
}

/// What comes after a panic's message: what the runtime adds to it, or logs.
fn ends_message(line: &str) -> bool {
    ["note: ", "stack backtrace:", "--- log of "].iter().any(|start| line.starts_with(start))
}

/// The heading above what a test printed.
fn of_test(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(output: &str) -> Heard {
        let mut heard = Heard::default();
        output.lines().for_each(|line| heard.line(line));
        heard
    }

    #[test]
    fn a_failed_test_is_told_with_its_message_and_without_the_logs() {
        let output = "
test a ... ok
test mesh::b ... FAILED
test c ... FAILED

successes:

---- a stdout ----
thread 'a' (7) panicked at src/a.rs:1:2:
on purpose

failures:

---- mesh::b stdout ----
-- log of h1
2 nodes

thread 'mesh::b' (8) panicked at src/b.rs:3:4:
1 of 3 pings
--- log of h1:
nothing
note: run with `RUST_BACKTRACE=1`
more log
---- c stdout ----
thread '<unnamed>' panicked at src/c.rs:5:6:
left
right
thread 'c' (8) panicked at src/c.rs:7:8:

failures:
    c
    mesh::b

test result: FAILED.
";
        let told =
            "\nmesh::b: 1 of 3 pings\nc: left\n  right\n  thread 'c' (8) panicked at src/c.rs:7:8:";
        assert_eq!(heard(output).failures(), told);
        assert_eq!(heard("test a ... ok").failures(), "");
    }

    #[test]
    fn only_the_first_lines_of_a_long_message_are_told() {
        let long = (0..50).fold(String::new(), |all, n| all + &format!("line {n}\n"));
        let output = format!("failures:\n---- a stdout ----\nthread 'a' panicked at b:\n{long}");
        assert_eq!(heard(&output).failures().lines().count(), 1 + LINES);
    }

    #[test]
    fn a_reason_to_skip_is_told_once() {
        let output = "SKIP: no docker\nSKIP: no qemu\nnot SKIP: this\nSKIP: no docker\n";
        assert_eq!(heard(output).skips(), ["no docker", "no qemu"]);
    }
}
