//! From a JSON value to a message, by the rules of Go's `protojson` as etcd's gateway uses it: both spellings of field
//! names, numbers or strings for integers, names or numbers for enums, unknown fields skipped; and its error texts.

use std::ops::Range;

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use super::scan::{escaped, is_space};

/// Deepest nesting of messages: prost reads no deeper ones, so the door could not take what is refused here.
const DEPTH_MAX: usize = 100;

/// The message of this type that `json` describes. `json` is one complete value, as [`super::scan::Values`] cuts them;
/// its syntax is not checked again. The error is a text for the client.
pub fn message(kind: &MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, String> {
    let mut parser = Parser { json, at: 0 };
    parser.message(kind, DEPTH_MAX).map_err(|text| format!("proto: {text}"))
}

struct Parser<'a> {
    json: &'a [u8],
    at: usize,
}

/// One token; commas and colons are none, since the syntax is known to be right.
struct Token {
    what: What,
    raw: Range<usize>,
}

enum What {
    Open,
    Close,
    Text(String),
    Number,
    Bool(bool),
    Null,
    End,
}

impl Parser<'_> {
    fn message(&mut self, kind: &MessageDescriptor, depth: usize) -> Result<DynamicMessage, String> {
        let depth = depth.checked_sub(1).ok_or("exceeded max recursion depth")?;
        self.open(b'{')?;
        let mut message = DynamicMessage::new(kind.clone());
        let mut seen = Vec::new();
        let mut chosen = Vec::new();
        loop {
            let token = self.read()?;
            let What::Text(name) = &token.what else { return Ok(message) };
            let field = kind.get_field_by_json_name(name).or_else(|| kind.get_field_by_name(name));
            let Some(field) = field else {
                self.skip()?;
                continue;
            };
            if seen.contains(&field.number()) {
                return Err(self.fault(&token, &format!("duplicate field {}", self.raw(&token))));
            }
            seen.push(field.number());
            if self.peek() == Some(b'n') {
                self.read()?;
                continue;
            }
            let value = if field.is_list() {
                Some(self.list(&field, depth)?)
            } else {
                if let Some(oneof) = field.containing_oneof() {
                    if chosen.contains(&oneof.full_name().to_owned()) {
                        let text =
                            format!("error parsing {}, oneof {} is already set", self.raw(&token), oneof.full_name());
                        return Err(self.fault(&token, &text));
                    }
                    chosen.push(oneof.full_name().to_owned());
                }
                self.single(&field, depth)?
            };
            if let Some(value) = value {
                message.try_set_field(&field, value).map_err(|e| e.to_string())?;
            }
        }
    }

    fn list(&mut self, field: &FieldDescriptor, depth: usize) -> Result<Value, String> {
        self.open(b'[')?;
        let mut values = Vec::new();
        while self.peek() != Some(b']') {
            values.extend(self.single(field, depth)?);
        }
        self.read()?;
        Ok(Value::List(values))
    }

    /// One value of the field's type; nothing for the name of an enum value that does not exist.
    fn single(&mut self, field: &FieldDescriptor, depth: usize) -> Result<Option<Value>, String> {
        if let Kind::Message(kind) = field.kind() {
            return Ok(Some(Value::Message(self.message(&kind, depth)?)));
        }
        let token = self.read()?;
        let number = if let What::Number = token.what { self.raw(&token) } else { String::new() };
        let (name, value) = match (field.kind(), &token.what) {
            (Kind::Bool, What::Bool(value)) => ("bool", Some(Value::Bool(*value))),
            (Kind::Bool, _) => ("bool", None),
            (Kind::Int32, what) => ("int32", integer(what, &number).and_then(|n| n.parse().ok()).map(Value::I32)),
            (Kind::Int64, what) => ("int64", integer(what, &number).and_then(|n| n.parse().ok()).map(Value::I64)),
            (Kind::Uint32, what) => ("uint32", integer(what, &number).and_then(|n| n.parse().ok()).map(Value::U32)),
            (Kind::Uint64, what) => ("uint64", integer(what, &number).and_then(|n| n.parse().ok()).map(Value::U64)),
            (Kind::String, What::Text(text)) => ("string", Some(Value::String(text.clone()))),
            (Kind::String, _) => ("string", None),
            (Kind::Bytes, What::Text(text)) => ("bytes", bytes(text).map(|b| Value::Bytes(b.into()))),
            (Kind::Bytes, _) => ("bytes", None),
            (Kind::Enum(kind), What::Text(name)) => {
                return Ok(kind.get_value_by_name(name).map(|value| Value::EnumNumber(value.number())));
            }
            (Kind::Enum(_), What::Number) => {
                ("enum", integer_of(&number).and_then(|n| n.parse().ok()).map(Value::EnumNumber))
            }
            (Kind::Enum(_), _) => ("enum", None),
            // etcd's API has no field of another type.
            (kind, _) => return Err(self.fault(&token, &format!("a field of type {kind:?} is not supported"))),
        };
        let text = || format!("invalid value for {name} field {}: {}", field.json_name(), self.raw(&token));
        value.map(Some).ok_or_else(|| self.fault(&token, &text()))
    }

    fn open(&mut self, bracket: u8) -> Result<(), String> {
        let token = self.read()?;
        if self.json.get(token.raw.start) == Some(&bracket) {
            return Ok(());
        }
        let text = format!("unexpected token {}", self.raw(&token));
        Err(format!("syntax error {}: {text}", self.position(token.raw.start)))
    }

    /// Reads over the next value. Its strings are still looked at.
    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            match self.read()?.what {
                What::Open => open += 1,
                What::Close => open = open.saturating_sub(1),
                What::End => return Ok(()),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// The first byte of the next token.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.json.get(self.at) {
            if !is_space(*byte) && !matches!(byte, b',' | b':') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    fn read(&mut self) -> Result<Token, String> {
        let first = self.peek();
        let start = self.at;
        let what = match first {
            None => What::End,
            Some(b'{' | b'[') => What::Open,
            Some(b'}' | b']') => What::Close,
            Some(b'"') => What::Text(self.text()?),
            Some(b't') => What::Bool(true),
            Some(b'f') => What::Bool(false),
            Some(b'n') => What::Null,
            Some(_) => What::Number,
        };
        match what {
            What::End | What::Text(_) => {}
            What::Open | What::Close => self.at += 1,
            What::Bool(_) | What::Null | What::Number => {
                let rest = self.json.get(start..).unwrap_or_default();
                let delimiter = |b: &u8| is_space(*b) || matches!(b, b',' | b':' | b'}' | b']');
                self.at += rest.iter().position(delimiter).unwrap_or(rest.len());
            }
        }
        Ok(Token { what, raw: start..self.at })
    }

    /// A string; `at` is on its first quote, and afterwards behind its last.
    fn text(&mut self) -> Result<String, String> {
        let start = self.at;
        let wrong = |parser: &Self, text: &str| format!("syntax error {}: {text}", parser.position(start));
        let mut at = start + 1;
        let mut text = String::new();
        loop {
            let rest = self.json.get(at..).unwrap_or_default();
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\')).ok_or("unexpected EOF")?;
            let (plain, rest) = rest.split_at(plain);
            text += std::str::from_utf8(plain).map_err(|_| wrong(self, "invalid UTF-8 in string"))?;
            at += plain.len() + 2;
            match rest.get(..2) {
                Some(br"\b") => text.push('\x08'),
                Some(br"\f") => text.push('\x0c'),
                Some(br"\n") => text.push('\n'),
                Some(br"\r") => text.push('\r'),
                Some(br"\t") => text.push('\t'),
                Some(br"\u") => {
                    let unit = hex(rest).ok_or("unexpected EOF")?;
                    at += 4;
                    let character = match char::from_u32(unit.into()) {
                        Some(character) => character,
                        // A half of a pair: the other half must follow.
                        None => {
                            let second = rest.get(6..12).ok_or("unexpected EOF")?;
                            let units = hex(second).filter(|_| second.starts_with(br"\u")).map(|low| [unit, low]);
                            let pair = units.and_then(|units| char::decode_utf16(units).next()?.ok());
                            let told = format!("invalid escape code \"{}\" in string", quoted(second));
                            at += 6;
                            pair.ok_or_else(|| wrong(self, &told))?
                        }
                    };
                    text.push(character);
                }
                Some([b'\\', byte]) => text.push(char::from(*byte)),
                _ => {
                    self.at = at - 1;
                    return Ok(text);
                }
            }
        }
    }

    /// A token as it was written.
    fn raw(&self, token: &Token) -> String {
        String::from_utf8_lossy(self.json.get(token.raw.clone()).unwrap_or_default()).into_owned()
    }

    fn fault(&self, token: &Token, text: &str) -> String {
        format!("{}: {text}", self.position(token.raw.start))
    }

    /// Where a byte is, counted as protojson does: lines and characters from 1.
    fn position(&self, at: usize) -> String {
        let before = self.json.get(..at).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let last = before.rsplit(|b| *b == b'\n').next().unwrap_or_default();
        format!("(line {line}:{})", String::from_utf8_lossy(last).chars().count() + 1)
    }
}

/// Bytes as Go's `%q` shows them, without the quotes.
fn quoted(bytes: &[u8]) -> String {
    let chunk = |chunk: std::str::Utf8Chunk<'_>| {
        let valid: String = chunk.valid().chars().map(escaped).collect();
        let invalid: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        valid + &invalid
    };
    bytes.utf8_chunks().map(chunk).collect()
}

/// The four digits of `\uXXXX`.
fn hex(escape: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(escape.get(2..6)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

/// The digits of an integer, given as a number or as a string that begins with one.
fn integer(what: &What, raw: &str) -> Option<String> {
    match what {
        What::Number => integer_of(raw),
        What::Text(text) => {
            // protojson reads one token of the string and lets the rest be.
            let goes_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_');
            let token = text.split(|c| !goes_on(c)).next().unwrap_or_default();
            // An exponent without digits is none, unless nothing follows: its look ahead wants one more byte.
            let token = if token.len() < text.len() { token.strip_suffix(['e', 'E']).unwrap_or(token) } else { token };
            if is_number(token) && text.trim().len() == text.len() { integer_of(token) } else { None }
        }
        _ => None,
    }
}

/// JSON's grammar of numbers.
fn is_number(text: &str) -> bool {
    let rest = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (rest, None),
    };
    let (whole, decimals) = match mantissa.split_once('.') {
        Some((whole, decimals)) => (whole, Some(decimals)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && decimals.is_none_or(digits)
        && exponent.is_none_or(digits)
}

/// Most digits of an integer (of the largest u64): longer ones are refused before they are written out.
const DIGITS_MAX: usize = 20;

/// A JSON number as plain digits, if it is whole: `1e3` and `2.50e1` are.
fn integer_of(number: &str) -> Option<String> {
    let (sign, rest) = match number.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", number),
    };
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (whole, decimals) = (whole.trim_start_matches('0'), decimals.trim_end_matches('0'));
    if whole.is_empty() && decimals.is_empty() {
        return Some("0".to_owned());
    }
    let exponent: i32 = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    if exponent >= 0 {
        let zeros = shift.checked_sub(decimals.len())?;
        let fits = whole.len().saturating_add(shift) <= DIGITS_MAX;
        return fits.then(|| format!("{sign}{whole}{decimals}{}", "0".repeat(zeros)));
    }
    let (kept, gone) = whole.split_at_checked(whole.len().checked_sub(shift)?)?;
    (decimals.is_empty() && gone.bytes().all(|b| b == b'0')).then(|| format!("{sign}{kept}"))
}

/// Base64 in either alphabet, padded or not; line breaks in it do not count.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let padding =
        if text.len().is_multiple_of(4) { DecodePaddingMode::RequireCanonical } else { DecodePaddingMode::RequireNone };
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(padding);
    let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use ferretcd_proto::etcdserverpb as pb;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn parse<T: prost::Message + Default>(json: &str) -> Result<T, String> {
        let name = std::any::type_name::<T>().rsplit("::").next().unwrap();
        let pool = DescriptorPool::decode(ferretcd_proto::FILE_DESCRIPTORS).unwrap();
        let kind = pool.get_message_by_name(&format!("etcdserverpb.{name}")).unwrap();
        message(&kind, json.as_bytes()).map(|message| message.transcode_to().unwrap())
    }
    fn put(json: &str) -> Result<pb::PutRequest, String> {
        parse(json)
    }
    fn key(text: &str) -> Result<Vec<u8>, String> {
        put(&format!("{{\"key\":\"{text}\"}}")).map(|put| put.key.to_vec())
    }

    #[test]
    fn both_spellings_and_all_forms_are_read() {
        let range: pb::RangeRequest = parse(
            r#"{"key":"Zm9v","rangeEnd":"AA==","limit":"3","revision":4,"sort_order":"DESCEND","sortTarget":4,
                "keys_only":true,"minModRevision":"1e2","max_mod_revision":2.50e1,"unknown":[{"a":[null]},"x"],
                "serializable":null}"#,
        )
        .unwrap();
        let expected = pb::RangeRequest {
            key: "foo".into(),
            range_end: "\0".into(),
            limit: 3,
            revision: 4,
            sort_order: 2,
            sort_target: 4,
            keys_only: true,
            min_mod_revision: 100,
            max_mod_revision: 25,
            ..Default::default()
        };
        assert_eq!(range, expected);
        let member: pb::MemberAddRequest =
            parse(r#"{"peerURLs":["a","\u00e9\ud83d\ude00\n\/"],"isLearner":true}"#).unwrap();
        assert_eq!((member.peer_ur_ls, member.is_learner), (vec!["a".into(), "é😀\n/".into()], true));
        let lease: pb::LeaseGrantRequest = parse(r#"{"TTL":"20","ID":-7}"#).unwrap();
        assert_eq!((lease.ttl, lease.id), (20, -7));
    }

    #[test]
    fn messages_nest_and_oneofs_keep_what_is_zero() {
        let txn: pb::TxnRequest = parse(
            r#"{"compare":[{"key":"YQ==","target":"VERSION","version":"0"},{}],
                "success":[{"requestRange":{"key":"YQ=="}},{"request_txn":{"failure":[{"request_put":{}}]}}]}"#,
        )
        .unwrap();
        assert_eq!(txn.compare[0].target_union, Some(pb::compare::TargetUnion::Version(0)));
        assert_eq!(txn.compare[1], pb::Compare::default());
        let Some(pb::request_op::Request::RequestTxn(inner)) = &txn.success[1].request else { panic!("{txn:?}") };
        assert_eq!(inner.failure[0].request, Some(pb::request_op::Request::RequestPut(Default::default())));
    }

    #[test]
    fn base64_of_both_alphabets_with_and_without_padding() {
        for text in ["+/+/", "-_-_"] {
            assert_eq!(key(text).unwrap(), [0xfb, 0xff, 0xbf], "{text}");
        }
        for text in ["YQ==", "YQ", "Y\\nQ", "YR"] {
            assert_eq!(key(text).unwrap(), b"a", "{text}");
        }
        for text in ["A", "YQ=", "+/-_", "***", "YQ==YQ==", "Y Q="] {
            let told = format!("proto: (line 1:8): invalid value for bytes field key: \"{text}\"");
            assert_eq!(key(text), Err(told));
        }
    }

    #[test]
    fn integers_are_numbers_or_strings_that_are_whole() {
        let lease = |text: &str| put(&format!("{{\"lease\":{text}}}")).map(|put| put.lease);
        let good =
            [("\"-9223372036854775808\"", i64::MIN), ("1e1", 10), ("100e-2", 1), ("0.0", 0), ("-0", 0), ("\"1 2\"", 1)];
        for (text, value) in good {
            assert_eq!(lease(text), Ok(value), "{text}");
        }
        for text in [
            "1.5",
            "1e-1",
            "99999999999999999999",
            "1e30",
            "9223372036854775808",
            "\" 1\"",
            "\"\"",
            "\"0x1\"",
            "\"1e\"",
            "\"1e+}\"",
            "true",
            "{}",
        ] {
            let raw = if text == "{}" { "{" } else { text };
            assert_eq!(lease(text), Err(format!("proto: (line 1:10): invalid value for int64 field lease: {raw}")));
        }
    }

    #[test]
    fn refusals_have_protojsons_words_and_places() {
        let cases = [
            ("null", "syntax error (line 1:1): unexpected token null"),
            ("[]", "syntax error (line 1:1): unexpected token ["),
            (r#"{"key":"YQ","key":"YQ"}"#, r#"(line 1:13): duplicate field "key""#),
            ("{\"é\":1,\n \"prevKv\":true,\"prev_kv\":true}", "(line 2:16): duplicate field \"prev_kv\""),
            (r#"{"key":12}"#, "(line 1:8): invalid value for bytes field key: 12"),
            (r#"{"prevKv":"true"}"#, r#"(line 1:11): invalid value for bool field prevKv: "true""#),
            (r#"{"x":"\ud800"}"#, "unexpected EOF"),
            (r#"{"x":"\ud800\ud800"}"#, r#"syntax error (line 1:6): invalid escape code "\\ud800" in string"#),
            (
                "{\"x\":\"\\ud800é\u{85}aaaaaa\"}",
                r#"syntax error (line 1:6): invalid escape code "é\u0085aa" in string"#,
            ),
            (r#"{"x":"\ud800aaaaaaa"}"#, r#"syntax error (line 1:6): invalid escape code "aaaaaa" in string"#),
        ];
        for (json, told) in cases {
            assert_eq!(put(json), Err(format!("proto: {told}")), "{json}");
        }
        let txn = |json: &str| parse::<pb::TxnRequest>(json).unwrap_err();
        assert_eq!(txn(r#"{"compare":{}}"#), "proto: syntax error (line 1:12): unexpected token {");
        assert_eq!(txn(r#"{"compare":[null]}"#), "proto: syntax error (line 1:13): unexpected token null");
        assert_eq!(
            txn(r#"{"compare":[{"value":"","version":"1"}]}"#),
            "proto: (line 1:25): error parsing \"version\", oneof etcdserverpb.Compare.target_union is already set"
        );
        let pool = DescriptorPool::decode(ferretcd_proto::FILE_DESCRIPTORS).unwrap();
        let kind = pool.get_message_by_name("etcdserverpb.PutRequest").unwrap();
        let told = message(&kind, b"{\"key\":\"\xff\"}").unwrap_err();
        assert_eq!(told, "proto: syntax error (line 1:8): invalid UTF-8 in string");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| "{\"success\":[{\"request_txn\":".repeat(n) + "{}" + &"}]}".repeat(n);
        assert!(parse::<pb::TxnRequest>(&nested(49)).is_ok());
        assert_eq!(parse::<pb::TxnRequest>(&nested(50)), Err("proto: exceeded max recursion depth".into()));
    }

    #[test]
    fn fuzz_json() {
        use crate::gateway::{routes, scan::Values, write};
        use prost::Message;
        let routes: Vec<_> = routes::table().into_values().collect();
        let bodies = [
            r#"{"key":"Zm9v","value":"YmFy","lease":"1","prev_kv":true,"ignoreValue":false}"#,
            r#"{"key":"Zm8=","range_end":"Zm9+","limit":1,"sort_order":"DESCEND","sortTarget":3,"keys_only":null}"#,
            r#"{"compare":[{"target":"CREATE","key":"Zm8","createRevision":"1","result":"EQUAL"}],"success":[{"requestPut":{"key":"Zm8"}}],"failure":[{"request_txn":{"success":[]}}]}"#,
            r#"{"create_request":{"key":"Zm9v","filters":["NOPUT",1],"watchId":-1}} {"cancelRequest":{}}"#,
            r#"{"action":"GET","memberID":"18446744073709551615","alarm":"NONE"}"#,
            r#"{"name":"u","password":"\u00e9\ud83d\ude00","options":{"noPassword":true}}"#,
            r#"{"peerURLs":["http://a:1"],"isLearner":true} [1,2.5e3,{"a":null}]"#,
        ];
        let seeds = (0..routes.len() as u8).flat_map(|tag| bodies.map(|body| [&[tag][..], body.as_bytes()].concat()));
        let words = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"\"",
            "null",
            "true",
            "1e400",
            "-0",
            "0.5",
            "9223372036854775808",
            "\\ud800",
            "\\u0000",
            "\"key\":",
            "\"rangeEnd\":",
            "\"lease\":",
            "\"ID\":",
            "\"TTL\":",
            "\"keys\":",
            "\"perm\":{",
            "\"permType\":\"READWRITE\"",
            "\"linearizable\":",
        ];
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "json").seeds(seeds).words(&words).run(|bytes| {
            let (tag, body) = bytes.split_first().unwrap_or((&0, &[]));
            let kind = &routes[usize::from(*tag) % routes.len()].input;
            // The body comes in two pieces.
            let mut values = Values::new(1 << 16);
            let mut said = String::new();
            let mut take = |values: &mut Values, at_end: bool| loop {
                let next = match values.next() {
                    Ok(None) if at_end => values.finish(),
                    next => next,
                };
                let value = match next {
                    Ok(Some(value)) => value,
                    Ok(None) => return true,
                    Err(broken) => {
                        said += &format!("{broken:?};");
                        return false;
                    }
                };
                match message(kind, &value) {
                    Ok(read) => {
                        let again = DynamicMessage::decode(kind.clone(), read.encode_to_vec().as_slice()).unwrap();
                        let mut json = String::new();
                        write::message(&mut json, &again, false);
                        assert_eq!(message(kind, json.as_bytes()).as_ref(), Ok(&again), "{json}");
                        said += &json;
                    }
                    Err(text) => said += &text,
                }
                if at_end && said.len() > 4096 {
                    return false;
                }
            };
            let (first, second) = body.split_at(body.len() / 2);
            values.push(first);
            if take(&mut values, false) {
                values.push(second);
                take(&mut values, true);
            }
            said
        });
    }
}
