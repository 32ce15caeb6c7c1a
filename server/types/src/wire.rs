//! The wire format of what we store and log: protobuf's tag, varint and length rules, written by hand.
//!
//! Chosen for three reasons: a stored `KeyValue` is byte for byte etcd's (snapshot files and HashKV need that), a field
//! can be added without breaking older records, and decoding slices the buffer instead of copying values.
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {what}: {why}")]
pub struct DecodeError {
    /// The record's kind.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Builds one message. Fields with zero values are left out, as proto3 does.
#[derive(Debug, Default)]
pub struct Writer {
    buf: BytesMut,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty message with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Writer { buf: BytesMut::with_capacity(capacity) }
    }

    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.buf.put_u8(v as u8 | 0x80);
            v >>= 7;
        }
        self.buf.put_u8(v as u8);
    }

    /// An unsigned field.
    pub fn uint(&mut self, field: u32, v: u64) {
        if v != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(v);
        }
    }

    /// A signed field (proto `int64`: two's complement, not zigzag).
    pub fn int(&mut self, field: u32, v: i64) {
        self.uint(field, v as u64);
    }

    /// A boolean field.
    pub fn bool(&mut self, field: u32, v: bool) {
        self.uint(field, u64::from(v));
    }

    /// A bytes field, left out when empty.
    pub fn bytes(&mut self, field: u32, v: &[u8]) {
        if !v.is_empty() {
            self.message(field, v);
        }
    }

    /// A string field, left out when empty.
    pub fn str(&mut self, field: u32, v: &str) {
        self.bytes(field, v.as_bytes());
    }

    /// A nested message or an element of a repeated field: written even when empty.
    pub fn message(&mut self, field: u32, v: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(v.len() as u64);
        self.buf.put_slice(v);
    }

    /// The finished bytes.
    pub fn finish(self) -> Bytes {
        self.buf.freeze()
    }
}

/// A field's value as it stands on the wire.
#[derive(Clone, Debug)]
pub enum Value {
    /// A varint.
    Uint(u64),
    /// Length-delimited bytes, a slice of the message.
    Bytes(Bytes),
}

/// Reads one message field by field.
#[derive(Debug)]
pub struct Reader {
    what: &'static str,
    buf: Bytes,
}

impl Reader {
    /// Reads `buf`, naming `what` in errors.
    pub fn new(what: &'static str, buf: Bytes) -> Self {
        Reader { what, buf }
    }

    fn err(&self, why: &'static str) -> DecodeError {
        DecodeError { what: self.what, why }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            if !self.buf.has_remaining() {
                return Err(self.err("it ends inside a number"));
            }
            let b = self.buf.get_u8();
            v |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(self.err("a number is longer than ten bytes"))
    }

    /// The next field's number and value, or `None` at the end. (A protobuf-style iterator that can fail; the name
    /// `next` would promise `Iterator`.)
    pub fn field(&mut self) -> Result<Option<(u32, Value)>, DecodeError> {
        loop {
            if !self.buf.has_remaining() {
                return Ok(None);
            }
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).map_err(|_| self.err("a field number is too large"))?;
            match tag & 7 {
                0 => return Ok(Some((number, Value::Uint(self.varint()?)))),
                2 => {
                    let len = self.varint()?;
                    if len > self.buf.remaining() as u64 {
                        return Err(self.err("a field is longer than what is left"));
                    }
                    return Ok(Some((number, Value::Bytes(self.buf.split_to(len as usize)))));
                }
                // Fixed-width fields are not used by us, yet a newer writer may add one: skip it.
                1 => self.skip(8)?,
                5 => self.skip(4)?,
                _ => return Err(self.err("a field has an unknown wire type")),
            }
        }
    }

    fn skip(&mut self, n: usize) -> Result<(), DecodeError> {
        if self.buf.remaining() < n {
            return Err(self.err("it ends inside a fixed-width field"));
        }
        self.buf.advance(n);
        Ok(())
    }
}

impl Value {
    /// As an unsigned number; a length-delimited value is no number.
    pub fn uint(self, what: &'static str) -> Result<u64, DecodeError> {
        match self {
            Value::Uint(v) => Ok(v),
            Value::Bytes(_) => Err(DecodeError { what, why: "a number was expected" }),
        }
    }

    /// As a signed number.
    pub fn int(self, what: &'static str) -> Result<i64, DecodeError> {
        Ok(self.uint(what)? as i64)
    }

    /// As a boolean.
    pub fn bool(self, what: &'static str) -> Result<bool, DecodeError> {
        Ok(self.uint(what)? != 0)
    }

    /// As bytes.
    pub fn bytes(self, what: &'static str) -> Result<Bytes, DecodeError> {
        match self {
            Value::Bytes(b) => Ok(b),
            Value::Uint(_) => Err(DecodeError { what, why: "bytes were expected" }),
        }
    }

    /// As a string.
    pub fn string(self, what: &'static str) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes(what)?.to_vec()).map_err(|_| DecodeError { what, why: "a string is not UTF-8" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_were_written() {
        let mut w = Writer::new();
        w.uint(1, 300);
        w.int(2, -1);
        w.bytes(3, b"x");
        w.message(4, b"");
        w.uint(5, 0);
        let mut r = Reader::new("test", w.finish());
        let mut seen = Vec::new();
        while let Some((n, v)) = r.field().unwrap() {
            seen.push(match v {
                Value::Uint(u) => format!("{n}={}", u as i64),
                Value::Bytes(b) => format!("{n}={b:?}"),
            });
        }
        assert_eq!(seen, ["1=300", "2=-1", "3=b\"x\"", "4=b\"\""]);
    }

    #[test]
    fn damaged_bytes_are_errors() {
        for bytes in [
            &b"\x08"[..],
            b"\x08\xff",
            b"\x12\x05ab",
            b"\x0b",
            b"\x09\x00",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            let mut r = Reader::new("test", Bytes::copy_from_slice(bytes));
            assert!(r.field().is_err(), "{bytes:?}");
        }
    }
}
