//! Who asks: from what a call brought along to a user, and from a password to a token. What a user may do is the
//! state's to say; a clock, randomness and the slow hash are this floor's.

pub mod jwt;
mod tokens;

use crate::node::Node;
use bytes::Bytes;
use ferretcd_state::{Access, Permits};
use ferretcd_types::{AuthChange, Authenticate, Caller, Client, Command, Error, KeyRange, Permission, Reply, Revised};
use jwt::Jwt;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

pub(crate) use tokens::SimpleTokens;

/// How users are known, from the flags.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// `--auth-token`.
    pub tokens: TokenKind,
    /// How long a simple token stays good after its last use (`--auth-token-ttl`).
    pub token_ttl: Duration,
    /// `--bcrypt-cost`, 4 to 31.
    pub bcrypt_cost: u32,
    /// `--turn-auth-off`: the way back in for who has lost root's password. Who can start a member with it has the
    /// member's data anyway.
    pub turn_off: bool,
}

/// The kinds of token.
#[derive(Clone, Debug)]
pub enum TokenKind {
    /// Random text that the members keep.
    Simple,
    /// Signed text.
    Jwt(Jwt),
}

impl Default for AuthConfig {
    /// etcd's defaults.
    fn default() -> Self {
        AuthConfig { tokens: TokenKind::Simple, token_ttl: Duration::from_secs(300), bcrypt_cost: 10, turn_off: false }
    }
}

/// What a call brought along to say who asks. Nothing is looked up before it has to be: a long stream's token may end
/// while the stream goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    #[default]
    None,
    /// A token, good or not.
    Token(Arc<str>),
    /// The common name of a client certificate that was verified.
    CertName(Arc<str>),
}

/// What a call asks for as a whole, before its content is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// To be any user.
    User,
    /// To be root.
    Root,
}

/// What only this member knows about users.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(crate) config: AuthConfig,
    pub(crate) tokens: Arc<SimpleTokens>,
    /// Password checks at once: each keeps a processor busy for tens of milliseconds, and more than there are
    /// processors would only take them from everybody else.
    hashing: Arc<Semaphore>,
}

impl Auth {
    pub(crate) fn new(config: AuthConfig, tokens: Arc<SimpleTokens>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Auth { config, tokens, hashing: Arc::new(Semaphore::new(processors)) }
    }
}

/// Passwords that bcrypt takes; Go's refuses longer ones, and so does etcd.
const PASSWORD_BYTES_MAX: usize = 72;

/// Letters of a simple token (etcd's number).
const TOKEN_LETTERS: usize = 16;

/// How often a password is checked again because users changed meanwhile. Every change takes a round of the log, so
/// more than a few in a row only come from somebody who makes them without end.
const AUTHENTICATE_TRIES: usize = 8;

impl Node {
    /// The same member, asked in the name of whoever brought this credential. Without one a client is nobody.
    pub fn on_behalf_of(&self, credential: Credential) -> Node {
        Node { inner: self.inner.clone(), credential }
    }

    /// Who asks, as of now. Waits until this member can know a simple token: it may come from another one that is
    /// ahead.
    pub async fn client(&self) -> Result<Client, Error> {
        if let (true, Credential::Token(token), TokenKind::Simple) =
            (self.inner.state.auth_enabled(), &self.credential, &self.inner.auth.config.tokens)
            && let Some(index) = tokens::index_of(token)
            && index > *self.inner.applied.borrow()
        {
            let deadline = Instant::now() + self.inner.timing.request_timeout();
            self.inner.wait_applied(index, deadline).await.map_err(|_| Error::InvalidAuthToken)?;
        }
        self.client_now()
    }

    /// As [`Node::client`], without waiting.
    pub(crate) fn client_now(&self) -> Result<Client, Error> {
        if !self.inner.state.auth_enabled() {
            return Ok(Client::default());
        }
        match (&self.credential, &self.inner.auth.config.tokens) {
            (Credential::None, _) => Ok(Client::default()),
            (Credential::CertName(name), _) => {
                let auth_revision = self.inner.state.permits().revision();
                Ok(Client { user: name.to_string(), auth_revision })
            }
            (Credential::Token(token), TokenKind::Simple) => {
                self.inner.auth.tokens.client_of(token).ok_or(Error::InvalidAuthToken)
            }
            (Credential::Token(token), TokenKind::Jwt(jwt)) => jwt.verify(token).ok_or(Error::InvalidAuthToken),
        }
    }

    /// Whether authentication is on, as far as this member has heard.
    pub fn auth_enabled(&self) -> bool {
        self.inner.state.auth_enabled()
    }

    /// Refuses a caller that is not what a call asks for as a whole.
    pub async fn require(&self, standing: Standing) -> Result<(), Error> {
        if !self.inner.state.auth_enabled() {
            return Ok(());
        }
        let client = self.client().await?;
        let permits = self.inner.state.permits();
        match standing {
            Standing::User => permits.check_user(&client),
            Standing::Root => permits.check_root(&client),
        }
    }

    /// Reads if the caller may, and answers only if nobody's rights have changed meanwhile. A signed token from before
    /// the last change is refused where keys are looked at, and nowhere else, as in etcd; one from after what this
    /// member knows is refused. Costs nothing while auth is off.
    pub(crate) async fn guarded<T>(
        &self,
        may: impl FnOnce(&Permits, &Client) -> Result<(), Error>,
        read: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let state = &self.inner.state;
        if !state.auth_enabled() {
            return read();
        }
        let client = self.client().await?;
        let permits = state.permits();
        may(&permits, &client)?;
        let answer = read()?;
        match client.auth_revision > permits.revision() || permits.revision() != state.permits().revision() {
            true => Err(Error::AuthOldRevision),
            false => Ok(answer),
        }
    }

    /// Whether the caller may watch a range, as of now.
    pub(crate) fn may_watch(&self, range: &KeyRange) -> Result<(), Error> {
        match self.inner.state.auth_enabled() {
            true => self.inner.state.permits().check(&self.client_now()?, Access::Read, range),
            false => Ok(()),
        }
    }

    /// In whose name the caller's commands go into the log.
    pub(crate) async fn caller(&self) -> Result<Caller, Error> {
        Ok(Caller::Client(self.client().await?))
    }

    /// Adds a user. The hash is made here; the password goes no further. Nobody makes us hash without a name; whether
    /// the user may is looked at when the command is applied.
    pub async fn user_add(&self, name: String, password: String, no_password: bool) -> Result<Revised, Error> {
        self.require(Standing::User).await?;
        let hash = if no_password { Bytes::new() } else { self.hash_password(password).await? };
        self.propose(AuthChange::UserAdd { name, hash, no_password }).await
    }

    /// Gives a user another password. Its tokens end. An empty one lets nobody in any more (etcd's behaviour, unlike
    /// that of an empty one from the start).
    pub async fn user_change_password(&self, name: String, password: String) -> Result<Revised, Error> {
        self.require(Standing::User).await?;
        let hash = if password.is_empty() { Bytes::new() } else { self.hash_password(password).await? };
        self.propose(AuthChange::UserChangePassword { name, hash }).await
    }

    /// A token for a user with its password, and the store's revision.
    pub async fn authenticate(&self, name: String, password: String) -> Result<(String, i64), Error> {
        self.inner.linearize().await?;
        let password: Arc<str> = password.into();
        for _ in 0..AUTHENTICATE_TRIES {
            let checked_at = self.inner.state.permits().revision();
            self.check_password(&name, password.clone()).await?;
            let token = match self.inner.auth.config.tokens {
                TokenKind::Simple => random_letters(),
                TokenKind::Jwt(_) => String::new(),
            };
            let command = Command::Authenticate(Authenticate { user: name.clone(), token });
            let reply = match self.inner.propose(command).await? {
                Reply::Authenticated(reply) => reply,
                other => return Err(Error::Internal(format!("an authentication was answered with {other:?}"))),
            };
            // The password may have been changed between its check and the log.
            if reply.auth_revision != checked_at {
                continue;
            }
            let token = match &self.inner.auth.config.tokens {
                TokenKind::Simple => reply.token,
                TokenKind::Jwt(jwt) => jwt.sign(&name, reply.auth_revision)?,
            };
            return Ok((token, reply.revision));
        }
        Err(Error::AuthOldRevision)
    }

    async fn check_password(&self, name: &str, password: Arc<str>) -> Result<(), Error> {
        if !self.inner.state.auth_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.inner.state.auth_user(name)?.ok_or(Error::AuthFailed)?;
        if user.no_password {
            return Err(Error::NoPasswordUser);
        }
        let matches = self
            .with_processor(move || {
                let hash = std::str::from_utf8(&user.hash).unwrap_or_default();
                // A hash that is none lets nobody in.
                bcrypt::verify(password.as_bytes(), hash).unwrap_or(false)
            })
            .await?;
        if !matches {
            tracing::warn!(user = name, "invalid authentication was requested");
            return Err(Error::AuthFailed);
        }
        Ok(())
    }

    async fn hash_password(&self, password: String) -> Result<Bytes, Error> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Error::PasswordTooLong);
        }
        let cost = self.inner.auth.config.bcrypt_cost;
        let hashed = self.with_processor(move || bcrypt::hash_with_result(password, cost)).await?;
        let parts = hashed.map_err(Error::internal)?;
        // The version that etcd's own hashes name.
        Ok(parts.format_for_version(bcrypt::Version::TwoA).into())
    }

    async fn with_processor<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        // Who floods a member with logins takes time from other logins, and holds nothing here for longer than this.
        let place = timeout(self.inner.timing.request_timeout(), self.inner.auth.hashing.clone().acquire_owned());
        let place = place.await.map_err(|_| Error::Timeout)?.map_err(|_| Error::Stopped)?;
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)
    }

    /// Whether auth is on, and the auth revision. Anyone may ask, only not with a bad token.
    pub async fn auth_status(&self) -> Result<(bool, u64), Error> {
        self.client().await?;
        self.inner.linearize().await?;
        let permits = self.inner.state.permits();
        Ok((permits.enabled(), permits.revision()))
    }

    /// All users' names.
    pub async fn user_list(&self) -> Result<Vec<String>, Error> {
        self.inner.linearize().await?;
        self.guarded(Permits::check_root, || Ok(self.inner.state.auth_users())).await
    }

    /// All roles' names.
    pub async fn role_list(&self) -> Result<Vec<String>, Error> {
        self.inner.linearize().await?;
        self.guarded(Permits::check_root, || Ok(self.inner.state.auth_roles())).await
    }

    /// The roles of a user.
    pub async fn user_roles(&self, name: &str) -> Result<Vec<String>, Error> {
        self.inner.linearize().await?;
        let may = |permits: &Permits, client: &Client| permits.check_see_user(client, name);
        self.guarded(may, || Ok(self.inner.state.auth_user(name)?.ok_or(Error::UserNotFound)?.roles)).await
    }

    /// The permissions of a role.
    pub async fn role_permissions(&self, name: &str) -> Result<Vec<Permission>, Error> {
        self.inner.linearize().await?;
        let may = |permits: &Permits, client: &Client| permits.check_see_role(client, name);
        self.guarded(may, || self.inner.state.auth_role(name)?.ok_or(Error::RoleNotFound)).await
    }
}

fn random_letters() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..TOKEN_LETTERS).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}
