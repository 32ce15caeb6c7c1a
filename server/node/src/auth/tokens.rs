//! Simple tokens: random text that every member takes for a user, because its assignment went through the log. How long
//! one stays good is each member's own business: for a while after its last use there.

use ferretcd_types::Client;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Tokens that are kept at most. Each costs its user a password check of tens of milliseconds, so that a member could
/// hand out this many within their time only to clients that log in for every request; it then forgets the one that
/// was not used for longest.
const TOKENS_MAX: usize = 100_000;

/// As many may lie about before the expired ones are looked for.
const PURGE_FROM: usize = 1024;

/// The tokens that this member knows.
#[derive(Debug)]
pub(crate) struct SimpleTokens {
    ttl: Duration,
    started: Instant,
    tokens: RwLock<HashMap<String, Held>>,
    /// The auth revision that the table is up to. The state knows a new one a moment earlier, in which a token that
    /// ends with it is still here.
    known: AtomicU64,
    /// How many there may be when the expired ones are looked for next.
    purge_at: Mutex<usize>,
}

#[derive(Debug)]
struct Held {
    user: String,
    /// Milliseconds after `started`; put off by each use.
    expires: AtomicU64,
}

impl SimpleTokens {
    /// No tokens, as of an auth revision.
    pub(crate) fn new(ttl: Duration, auth_revision: u64) -> Self {
        SimpleTokens {
            ttl,
            started: Instant::now(),
            tokens: RwLock::default(),
            known: AtomicU64::new(auth_revision),
            purge_at: Mutex::new(PURGE_FROM),
        }
    }

    /// Tokens that ended with this auth revision are gone.
    pub(crate) fn know(&self, auth_revision: u64) {
        self.known.store(auth_revision, Ordering::Release);
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn expiry(&self) -> u64 {
        self.now().saturating_add(self.ttl.as_millis() as u64)
    }

    /// A token is good from now on.
    pub(crate) fn assign(&self, token: String, user: String) {
        let mut tokens = self.tokens.write();
        let mut purge_at = self.purge_at.lock();
        if tokens.len() >= *purge_at {
            let now = self.now();
            tokens.retain(|_, held| held.expires.load(Ordering::Relaxed) > now);
            if tokens.len() >= TOKENS_MAX {
                let oldest = tokens.iter().min_by_key(|(_, held)| held.expires.load(Ordering::Relaxed));
                if let Some(token) = oldest.map(|(token, _)| token.clone()) {
                    tokens.remove(&token);
                }
            }
            *purge_at = (tokens.len() * 2).clamp(PURGE_FROM, TOKENS_MAX);
        }
        let expires = AtomicU64::new(self.expiry());
        tokens.insert(token, Held { user, expires });
    }

    /// Whose token it is and as of which auth revision, if it is good; it stays so for its full time again.
    pub(crate) fn client_of(&self, token: &str) -> Option<Client> {
        // Before the look into the table: what ends after this is refused by its revision.
        let auth_revision = self.known.load(Ordering::Acquire);
        let user = self.user_of(token)?;
        Some(Client { user, auth_revision })
    }

    fn user_of(&self, token: &str) -> Option<String> {
        let tokens = self.tokens.read();
        let held = tokens.get(token)?;
        if held.expires.load(Ordering::Relaxed) <= self.now() {
            return None;
        }
        held.expires.store(self.expiry(), Ordering::Relaxed);
        Some(held.user.clone())
    }

    /// One user's tokens are good no longer, or nobody's are.
    pub(crate) fn drop_of(&self, user: Option<&str>) {
        self.tokens.write().retain(|_, held| user.is_some_and(|user| held.user != user));
    }
}

/// The log index that a token ends with: before a member has applied it, it cannot know the token. `None` for what is
/// no token.
pub(crate) fn index_of(token: &str) -> Option<u64> {
    let (random, index) = token.split_once('.')?;
    if random.is_empty() {
        return None;
    }
    index.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(tokens: &SimpleTokens, token: &str, user: &str) {
        tokens.assign(token.into(), user.into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_its_time_after_its_last_use() {
        let tokens = SimpleTokens::new(Duration::from_secs(300), 1);
        assign(&tokens, "a.1", "alice");
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(299)).await;
            assert_eq!(tokens.user_of("a.1").as_deref(), Some("alice"));
        }
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(tokens.user_of("a.1"), None);
    }

    #[tokio::test]
    async fn tokens_end_with_their_user_or_all_at_once() {
        let tokens = SimpleTokens::new(Duration::from_secs(300), 1);
        assign(&tokens, "a.1", "alice");
        assign(&tokens, "b.2", "bob");
        tokens.drop_of(Some("alice"));
        assert_eq!((tokens.user_of("a.1"), tokens.user_of("b.2").as_deref()), (None, Some("bob")));
        tokens.drop_of(None);
        assert_eq!(tokens.user_of("b.2"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_bounded_and_the_longest_unused_goes_first() {
        let tokens = SimpleTokens::new(Duration::from_secs(300), 1);
        assign(&tokens, "first", "u");
        tokio::time::advance(Duration::from_secs(1)).await;
        for n in 0..TOKENS_MAX {
            assign(&tokens, &n.to_string(), "u");
        }
        assert_eq!(tokens.tokens.read().len(), TOKENS_MAX);
        assert_eq!(tokens.user_of("first"), None);
        tokio::time::advance(Duration::from_secs(300)).await;
        assign(&tokens, "last", "u");
        assert_eq!(tokens.tokens.read().len(), 1, "the expired ones went together");
    }

    #[tokio::test]
    async fn a_token_is_good_as_of_the_last_change_that_the_table_has_seen() {
        let tokens = SimpleTokens::new(Duration::from_secs(300), 3);
        assign(&tokens, "a.1", "alice");
        let alice = |auth_revision| Some(Client { user: "alice".into(), auth_revision });
        // The state may be at 4 already: this client is refused there.
        assert_eq!(tokens.client_of("a.1"), alice(3));
        tokens.know(4);
        assert_eq!(tokens.client_of("a.1"), alice(4));
        assert_eq!(tokens.client_of("b.2"), None);
    }

    #[test]
    fn a_token_names_the_entry_that_assigned_it() {
        assert_eq!(index_of("abcdef.17"), Some(17));
        for none in ["", "abc", "abc.", "abc.x", "a.b.3", ".3", "abc.-1"] {
            assert_eq!(index_of(none), None, "{none:?}");
        }
    }
}
