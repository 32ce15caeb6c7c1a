//! From a message to JSON as etcd's gateway writes it: field names of the .proto files, in their order, what is unset
//! left out, 64-bit integers as strings, bytes in base64, enums by name, no space anywhere.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

/// Writes the message behind what is there.
///
/// `in_stream` is the form within a stream's line, where etcd wraps messages with Go's `encoding/json`, which escapes
/// what HTML could take for markup.
pub fn message(json: &mut String, message: &DynamicMessage, in_stream: bool) {
    json.push('{');
    let mut first = true;
    for field in message.descriptor().fields() {
        if !message.has_field(&field) {
            continue;
        }
        if !std::mem::take(&mut first) {
            json.push(',');
        }
        text(json, field.name(), in_stream);
        json.push(':');
        value(json, &message.get_field(&field), &field.kind(), in_stream);
    }
    json.push('}');
}

fn value(json: &mut String, value_: &Value, kind: &Kind, in_stream: bool) {
    // Writing to a string cannot fail.
    let _ = match value_ {
        Value::Bool(value) => write!(json, "{value}"),
        Value::I32(value) => write!(json, "{value}"),
        Value::U32(value) => write!(json, "{value}"),
        Value::I64(value) => write!(json, "\"{value}\""),
        Value::U64(value) => write!(json, "\"{value}\""),
        Value::F32(value) => write!(json, "{value}"),
        Value::F64(value) => write!(json, "{value}"),
        Value::String(value) => return text(json, value, in_stream),
        Value::Bytes(value) => {
            json.push('"');
            BASE64_STANDARD.encode_string(value, json);
            write!(json, "\"")
        }
        Value::EnumNumber(number) => match kind.as_enum().and_then(|kind| kind.get_value(*number)) {
            Some(named) => return text(json, named.name(), in_stream),
            None => write!(json, "{number}"),
        },
        Value::Message(value) => return message(json, value, in_stream),
        Value::List(values) => {
            json.push('[');
            for (position, one) in values.iter().enumerate() {
                if position > 0 {
                    json.push(',');
                }
                value(json, one, kind, in_stream);
            }
            write!(json, "]")
        }
        // No answer that the gateway passes on has a map.
        Value::Map(_) => write!(json, "{{}}"),
    };
}

/// Writes a string with its quotes.
pub fn text(json: &mut String, text: &str, in_stream: bool) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\x08' => json.push_str("\\b"),
            '\x0c' => json.push_str("\\f"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\0'..='\x1f' => escape(json, character),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if in_stream => escape(json, character),
            _ => json.push(character),
        }
    }
    json.push('"');
}

fn escape(json: &mut String, character: char) {
    // Writing to a string cannot fail.
    let _ = write!(json, "\\u{:04x}", u32::from(character));
}

#[cfg(test)]
mod tests {
    use ferretcd_proto::{etcdserverpb as pb, mvccpb};
    use prost::Message;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn json<T: Message>(name: &str, of: &T, in_stream: bool) -> String {
        let pool = DescriptorPool::decode(ferretcd_proto::FILE_DESCRIPTORS).unwrap();
        let kind = pool.get_message_by_name(name).unwrap();
        let mut json = String::new();
        message(&mut json, &DynamicMessage::decode(kind, of.encode_to_vec().as_slice()).unwrap(), in_stream);
        json
    }

    #[test]
    fn messages_are_written_as_etcd_writes_them() {
        let kv = mvccpb::KeyValue { key: "a".into(), mod_revision: 7, value: "?>".into(), ..Default::default() };
        let header = pb::ResponseHeader { cluster_id: u64::MAX, revision: 7, ..Default::default() };
        let range = pb::RangeResponse { header: Some(header), kvs: vec![kv.clone(), kv], more: true, count: 0 };
        assert_eq!(
            json("etcdserverpb.RangeResponse", &range, false),
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"7"},"kvs":[{"key":"YQ==","mod_revision":"7","value":"Pz4="},{"key":"YQ==","mod_revision":"7","value":"Pz4="}],"more":true}"#
        );
        let hash = pb::HashResponse { header: Some(Default::default()), hash: 5 };
        assert_eq!(json("etcdserverpb.HashResponse", &hash, false), r#"{"header":{},"hash":5}"#);
        let alarm = |alarm| pb::AlarmMember { member_id: 1, alarm };
        let alarms = pb::AlarmResponse { header: None, alarms: vec![alarm(2), alarm(0), alarm(9)] };
        assert_eq!(
            json("etcdserverpb.AlarmResponse", &alarms, false),
            r#"{"alarms":[{"memberID":"1","alarm":"CORRUPT"},{"memberID":"1"},{"memberID":"1","alarm":9}]}"#
        );
        let member =
            pb::Member { name: "\"<\u{1}\n&é\u{2028}".into(), peer_ur_ls: vec!["x".into()], ..Default::default() };
        let member = pb::MemberListResponse { header: None, members: vec![member] };
        assert_eq!(
            json("etcdserverpb.MemberListResponse", &member, false),
            "{\"members\":[{\"name\":\"\\\"<\\u0001\\n&é\u{2028}\",\"peerURLs\":[\"x\"]}]}"
        );
        assert_eq!(
            json("etcdserverpb.MemberListResponse", &member, true),
            "{\"members\":[{\"name\":\"\\\"\\u003c\\u0001\\n\\u0026é\\u2028\",\"peerURLs\":[\"x\"]}]}"
        );
    }
}
