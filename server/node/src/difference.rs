//! How two lists of a cluster's members differ, in words for who has to make them equal.

use ferretcd_proto::peer::ProbeMember;
use std::collections::BTreeMap;

/// What differs between the members that are named here and those that are named there (or, in a cluster that runs, that
/// are listed there). Nothing if they are the same: then it is the token that differs, since IDs come from both.
pub(crate) fn difference(here: &BTreeMap<String, Vec<String>>, there: &[ProbeMember]) -> Option<String> {
    let sorted = |urls: &[String]| {
        let mut urls = urls.to_vec();
        urls.sort_unstable();
        urls
    };
    let here: BTreeMap<String, Vec<String>> = here.iter().map(|(name, urls)| (name.clone(), sorted(urls))).collect();
    let mut rest: Vec<(&str, Vec<String>)> = there.iter().map(|m| (m.name.as_str(), sorted(&m.peer_urls))).collect();
    let mut texts = Vec::new();
    for (name, urls) in &here {
        // Names do not go into IDs, and a member that has just joined has none.
        if let Some(at) = rest.iter().position(|(_, u)| u == urls) {
            rest.remove(at);
        } else if let Some(at) = rest.iter().position(|(n, _)| n == name) {
            let (_, other) = rest.remove(at);
            texts.push(format!("{name} is {} here and {} there", urls.join(","), other.join(",")));
        } else {
            texts.push(format!("{name}={} is named here and not there", urls.join(",")));
        }
    }
    texts.extend(rest.iter().map(|(name, urls)| {
        let name = if name.is_empty() { String::new() } else { format!("{name}=") };
        format!("{name}{} is named there and not here", urls.join(","))
    }));
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(list: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
        list.iter().map(|(n, urls)| ((*n).to_owned(), urls.split(',').map(str::to_owned).collect())).collect()
    }

    fn there(list: &[(&str, &str)]) -> Vec<ProbeMember> {
        let member =
            |(name, peer_urls): (String, Vec<String>)| ProbeMember { name, peer_urls, ..ProbeMember::default() };
        here(list).into_iter().map(member).collect()
    }

    #[test]
    fn a_member_that_has_told_no_name_yet_is_told_by_its_urls() {
        let nameless = |url: &str| ProbeMember { peer_urls: vec![url.to_owned()], ..ProbeMember::default() };
        let told = difference(&here(&[("a", "http://a:1")]), &[nameless("http://a:1"), nameless("http://b:1")]);
        assert_eq!(told.as_deref(), Some("http://b:1 is named there and not here"));
    }

    #[test]
    fn members_are_compared_by_urls_and_told_by_name() {
        let ours = here(&[("a", "http://a:1"), ("b", "http://b:1,http://b:2"), ("c", "http://c:1")]);
        assert_eq!(
            difference(&ours, &there(&[("x", "http://a:1"), ("b", "http://b:2,http://b:1"), ("c", "http://c:1")])),
            None
        );
        let told = difference(&ours, &there(&[("a", "http://a:1"), ("b", "http://b:1"), ("d", "http://d:1")]));
        assert_eq!(
            told.as_deref(),
            Some(
                "b is http://b:1,http://b:2 here and http://b:1 there; c=http://c:1 is named here and not there; \
                 d=http://d:1 is named there and not here"
            )
        );
    }
}
