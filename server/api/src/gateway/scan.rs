//! Cuts a byte stream into JSON values and says what is wrong with one that is none, in the words of Go's
//! `encoding/json`, which etcd's gateway shows to its clients.

/// Deepest nesting of a value (Go's bound): the only memory that nesting costs here is this stack.
const DEPTH_MAX: usize = 10_000;

/// Why there is no further value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Not JSON; Go's words for it.
    Syntax(String),
    /// A value has more bytes than it may.
    TooLarge,
}

/// Takes bytes as they come and gives the values among them, one after the other, without the space around them.
#[derive(Debug)]
pub struct Values {
    scanner: Scanner,
    /// What came last, and before it the part of a value that came earlier.
    buffer: Vec<u8>,
    /// Where in the buffer the next value begins. What is before it was given away; it is only dropped with the next
    /// bytes, since moving the rest up for every value would make a large piece of small values cost its square.
    begin: usize,
    /// How far the scanner has seen.
    scanned: usize,
    /// Longest value in bytes.
    limit: usize,
}

impl Values {
    /// No bytes yet. A value of more than `limit` bytes is refused.
    pub fn new(limit: usize) -> Self {
        Values { scanner: Scanner::default(), buffer: Vec::new(), begin: 0, scanned: 0, limit }
    }

    /// More bytes. Take all values with [`Values::next`] before the next call, so that no more than one value waits.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.begin);
        self.scanned -= self.begin;
        self.begin = 0;
        self.buffer.extend_from_slice(bytes);
        if self.scanned == 0 {
            self.skip_space();
        }
    }

    /// The next value, if it is complete.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            match self.scanner.step(byte).map_err(Broken::Syntax)? {
                Step::More => self.scanned += 1,
                Step::EndsHere => {
                    self.scanned += 1;
                    return Ok(Some(self.take()));
                }
                Step::EndedBefore => return Ok(Some(self.take())),
            }
            if self.scanned - self.begin > self.limit {
                return Err(Broken::TooLarge);
            }
        }
        Ok(None)
    }

    /// What is left when no more bytes come: nothing, or a number or literal that only the end could end.
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        if self.begin == self.buffer.len() {
            return Ok(None);
        }
        match self.scanner.step(b' ') {
            Ok(Step::EndedBefore) => Ok(Some(self.take())),
            _ => Err(Broken::Syntax("unexpected EOF".to_owned())),
        }
    }

    /// The scanned bytes; what follows begins the next value.
    fn take(&mut self) -> Vec<u8> {
        let value = self.buffer.get(self.begin..self.scanned).unwrap_or_default().to_vec();
        self.scanner = Scanner::default();
        self.begin = self.scanned;
        self.skip_space();
        value
    }

    /// Space before a value is no part of it.
    fn skip_space(&mut self) {
        let rest = self.buffer.get(self.begin..).unwrap_or_default();
        self.begin += rest.iter().position(|b| !is_space(*b)).unwrap_or(rest.len());
        self.scanned = self.begin;
    }
}

/// JSON's space.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// What a byte did.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The value goes on.
    More,
    /// The value ends with this byte.
    EndsHere,
    /// The value ended before this byte, which is not part of it.
    EndedBefore,
}

/// What may come next.
#[derive(Clone, Copy, Debug, Default)]
enum Expect {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    /// A value is complete.
    After,
    Text,
    Escape,
    /// So many hexadecimal digits of an escape are missing.
    Hex(u8),
    /// After a number's minus sign.
    Digit,
    /// After a leading zero.
    Zero,
    Integer,
    /// After the decimal point.
    FirstDecimal,
    Decimals,
    /// After `e`.
    Exponent,
    /// After the exponent's sign.
    FirstExponent,
    Exponents,
    /// Within `true`, `false` or `null`: the word, and how many bytes of it have come.
    Word(&'static str, u8),
}

/// What a bracket opened, and where in it the scanner is.
#[derive(Clone, Copy, Debug)]
enum Open {
    Key,
    Field,
    Element,
}

#[derive(Debug, Default)]
struct Scanner {
    expect: Expect,
    open: Vec<Open>,
}

impl Scanner {
    fn step(&mut self, byte: u8) -> Result<Step, String> {
        match self.expect {
            Expect::Value | Expect::ValueOrEnd | Expect::Key | Expect::KeyOrEnd | Expect::After if is_space(byte) => {
                // Behind a complete top-level value, space ends it like any other byte.
                match (self.expect, self.open.is_empty()) {
                    (Expect::After, true) => Ok(Step::EndedBefore),
                    _ => Ok(Step::More),
                }
            }
            Expect::Value => self.begin(byte),
            Expect::ValueOrEnd if byte == b']' => self.after(byte),
            Expect::ValueOrEnd => self.begin(byte),
            Expect::KeyOrEnd if byte == b'}' => self.close(),
            Expect::Key | Expect::KeyOrEnd if byte == b'"' => self.go(Expect::Text),
            Expect::Key | Expect::KeyOrEnd => bad(byte, "looking for beginning of object key string"),
            Expect::After => self.after(byte),
            Expect::Text => match byte {
                b'"' => self.go(Expect::After),
                b'\\' => self.go(Expect::Escape),
                0..=0x1f => bad(byte, "in string literal"),
                _ => Ok(Step::More),
            },
            Expect::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.go(Expect::Text),
                b'u' => self.go(Expect::Hex(4)),
                _ => bad(byte, "in string escape code"),
            },
            Expect::Hex(_) if !byte.is_ascii_hexdigit() => bad(byte, "in \\u hexadecimal character escape"),
            Expect::Hex(1) => self.go(Expect::Text),
            Expect::Hex(missing) => self.go(Expect::Hex(missing - 1)),
            Expect::Digit => match byte {
                b'0' => self.go(Expect::Zero),
                b'1'..=b'9' => self.go(Expect::Integer),
                _ => bad(byte, "in numeric literal"),
            },
            Expect::Integer if byte.is_ascii_digit() => Ok(Step::More),
            Expect::Zero | Expect::Integer => match byte {
                b'.' => self.go(Expect::FirstDecimal),
                b'e' | b'E' => self.go(Expect::Exponent),
                _ => self.after(byte),
            },
            Expect::FirstDecimal if byte.is_ascii_digit() => self.go(Expect::Decimals),
            Expect::FirstDecimal => bad(byte, "after decimal point in numeric literal"),
            Expect::Decimals if byte.is_ascii_digit() => Ok(Step::More),
            Expect::Decimals if matches!(byte, b'e' | b'E') => self.go(Expect::Exponent),
            Expect::Exponent if matches!(byte, b'+' | b'-') => self.go(Expect::FirstExponent),
            Expect::Exponent | Expect::FirstExponent if byte.is_ascii_digit() => self.go(Expect::Exponents),
            Expect::Exponent | Expect::FirstExponent => bad(byte, "in exponent of numeric literal"),
            Expect::Exponents if byte.is_ascii_digit() => Ok(Step::More),
            Expect::Decimals | Expect::Exponents => self.after(byte),
            Expect::Word(word, come) => {
                let expected = word.as_bytes().get(usize::from(come)).copied().unwrap_or_default();
                if byte != expected {
                    return bad(byte, &format!("in literal {word} (expecting '{}')", char::from(expected)));
                }
                let come = come + 1;
                self.go(if usize::from(come) == word.len() { Expect::After } else { Expect::Word(word, come) })
            }
        }
    }

    fn go(&mut self, expect: Expect) -> Result<Step, String> {
        self.expect = expect;
        Ok(Step::More)
    }

    fn begin(&mut self, byte: u8) -> Result<Step, String> {
        match byte {
            b'{' => self.enter(byte, Open::Key, Expect::KeyOrEnd),
            b'[' => self.enter(byte, Open::Element, Expect::ValueOrEnd),
            b'"' => self.go(Expect::Text),
            b'-' => self.go(Expect::Digit),
            b'0' => self.go(Expect::Zero),
            b'1'..=b'9' => self.go(Expect::Integer),
            b't' => self.go(Expect::Word("true", 1)),
            b'f' => self.go(Expect::Word("false", 1)),
            b'n' => self.go(Expect::Word("null", 1)),
            _ => bad(byte, "looking for beginning of value"),
        }
    }

    fn enter(&mut self, byte: u8, open: Open, expect: Expect) -> Result<Step, String> {
        if self.open.len() == DEPTH_MAX {
            return bad(byte, "exceeded max depth");
        }
        self.open.push(open);
        self.go(expect)
    }

    /// A byte behind a complete value.
    fn after(&mut self, byte: u8) -> Result<Step, String> {
        let Some(open) = self.open.last_mut() else { return Ok(Step::EndedBefore) };
        if is_space(byte) {
            return self.go(Expect::After);
        }
        match (*open, byte) {
            (Open::Key, b':') => {
                *open = Open::Field;
                self.go(Expect::Value)
            }
            (Open::Field, b',') => {
                *open = Open::Key;
                self.go(Expect::Key)
            }
            (Open::Element, b',') => self.go(Expect::Value),
            (Open::Field, b'}') | (Open::Element, b']') => self.close(),
            (Open::Key, _) => bad(byte, "after object key"),
            (Open::Field, _) => bad(byte, "after object key:value pair"),
            (Open::Element, _) => bad(byte, "after array element"),
        }
    }

    fn close(&mut self) -> Result<Step, String> {
        self.open.pop();
        self.expect = Expect::After;
        Ok(if self.open.is_empty() { Step::EndsHere } else { Step::More })
    }
}

fn bad<T>(byte: u8, context: &str) -> Result<T, String> {
    Err(format!("invalid character {} {context}", quoted(byte)))
}

/// A byte as Go's `quoteChar` shows it: as the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => format!("'{}'", escaped(char::from(byte))),
    }
}

/// A character within a string that Go's `strconv.Quote` made.
pub fn escaped(character: char) -> String {
    match character {
        '\x07' => r"\a".to_owned(),
        '\x08' => r"\b".to_owned(),
        '\x0c' => r"\f".to_owned(),
        '\n' => r"\n".to_owned(),
        '\r' => r"\r".to_owned(),
        '\t' => r"\t".to_owned(),
        '\x0b' => r"\v".to_owned(),
        '\\' => r"\\".to_owned(),
        '"' => "\\\"".to_owned(),
        '\0'..='\x1f' | '\x7f' => format!("\\x{:02x}", u32::from(character)),
        '\u{80}'..='\u{a0}' | '\u{ad}' => format!("\\u{:04x}", u32::from(character)),
        _ => character.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values of a text that comes in pieces of `size` bytes, and how it ends.
    fn cut(text: &str, size: usize) -> (Vec<String>, Result<(), Broken>) {
        let mut values = Values::new(80);
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            values.push(piece);
            loop {
                match values.next() {
                    Ok(Some(value)) => found.push(String::from_utf8(value).unwrap()),
                    Ok(None) => break,
                    Err(e) => return (found, Err(e)),
                }
            }
        }
        match values.finish() {
            Ok(last) => found.extend(last.map(|v| String::from_utf8(v).unwrap())),
            Err(e) => return (found, Err(e)),
        }
        (found, Ok(()))
    }

    #[test]
    fn values_are_cut_wherever_the_bytes_were() {
        let text = " {\"a\":[1,-2.5e+3,{}],\"b\":\"\\\"}\\u00e9\"}\n[] 12 true\"x\"null{}7";
        let values = ["{\"a\":[1,-2.5e+3,{}],\"b\":\"\\\"}\\u00e9\"}", "[]", "12", "true", "\"x\"", "null", "{}", "7"];
        for size in [1, 2, 3, 7, 100] {
            assert_eq!(cut(text, size), (values.map(str::to_owned).to_vec(), Ok(())), "in pieces of {size}");
        }
        assert_eq!(cut(" \n ", 1), (vec![], Ok(())));
    }

    #[test]
    fn what_is_no_json_is_told_in_gos_words() {
        let cases = [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\" \"b\"}", "invalid character '\"' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\":tru}", "invalid character '}' in literal true (expecting 'e')"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12\"", "invalid character '\"' in \\u hexadecimal character escape"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.a", "invalid character 'a' after decimal point in numeric literal"),
            ("1ea", "invalid character 'a' in exponent of numeric literal"),
            ("{\"a\":\u{80}}", "invalid character 'Â' looking for beginning of value"),
            ("{\"a\":", "unexpected EOF"),
            ("tru", "unexpected EOF"),
        ];
        for (text, told) in cases {
            assert_eq!(cut(text, 3).1, Err(Broken::Syntax(told.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_value_before_the_fault_is_still_found() {
        let (values, end) = cut("{} {\"a\"} ", 100);
        assert_eq!(values, ["{}"]);
        assert_eq!(end, Err(Broken::Syntax("invalid character '}' after object key".to_owned())));
    }

    #[test]
    fn what_is_json_is_what_serde_json_takes_for_it() {
        let seed = br#"{"a":[1,-2.5e+3,{}],"b":"\"}\u00e9","c":[true,false,null,[]]}"#;
        for at in 0..seed.len() {
            for byte in 0..=0x7f {
                let mut text = seed.to_vec();
                text[at] = byte;
                let text = String::from_utf8(text).unwrap();
                let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
                let ours = cut(&text, 100).1.is_ok() && cut(&text, 100).0.len() == 1;
                // Halves of pairs are no matter of syntax, nor is a number that a float has no room for.
                let beyond = text.contains("\\ud") || text.contains("\\uD");
                assert!(ours == theirs || beyond, "{text}: {ours}");
            }
        }
    }

    /// A request's body, in pieces as the network makes them.
    #[test]
    fn fuzz_json_stream() {
        let seeds = [
            " {\"a\":[1,-2.5e+3,{}],\"b\":\"\\\"}\\u00e9\"}\n[] 12 true\"x\"null{}7",
            "{\"create_request\":{\"key\":\"Zm9v\"}}{\"cancel_request\":{\"watch_id\":\"1\"}}",
            "[[[[[[0]]]]],{\"a\":tru}",
        ];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "json_stream").seeds(seeds);
        fuzz.words(&["{", "}", "[", "]", "\"", "\\", ":", ",", "-", "e+", "true", "null", "\\u00e9", " "]).run(
            |bytes| {
                // Bytes that are no UTF-8 are the parser's business, and would be lost in this test's strings.
                let text = String::from_utf8_lossy(bytes);
                let whole = cut(&text, text.len().max(1));
                for size in [1, 3, 64] {
                    assert_eq!(cut(&text, size), whole, "in pieces of {size}");
                }
                for value in &whole.0 {
                    assert_eq!(cut(value, 5), (vec![value.clone()], Ok(())));
                }
                format!("{} {:?}", "x".repeat(whole.0.len().min(9)), whole.1)
            },
        );
    }

    #[test]
    fn a_piece_of_many_values_costs_no_more_than_its_length() {
        // As much as a WebSocket's message may have; by its square this would take minutes.
        let piece = b"{}".repeat(2 << 20);
        let (begun, mut values, mut found) = (std::time::Instant::now(), Values::new(80), 0);
        values.push(&piece);
        while values.next().unwrap().is_some() {
            found += 1;
        }
        assert_eq!((found, values.finish()), (2 << 20, Ok(None)));
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        values.push(b" ");
        assert!(values.buffer.len() <= 1, "what was given away is still held");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let mut values = Values::new(usize::MAX);
        values.push("[".repeat(DEPTH_MAX).as_bytes());
        assert_eq!(values.next(), Ok(None));
        values.push(b"[");
        let told = "invalid character '[' exceeded max depth".to_owned();
        assert_eq!(values.next(), Err(Broken::Syntax(told)));
        assert_eq!(cut(&format!("\"{}\"", "a".repeat(79)), 100).1, Err(Broken::TooLarge));
        // Space between values is dropped, however much there is.
        assert_eq!(cut(&format!("{}{{}}", " ".repeat(1000)), 10).0, ["{}"]);
    }
}
