//! Tokens of sessions and when they end. Pure: time is an argument.
//!
//! Not part of the state: a member that starts again knows none, and its clients ask for new
//! ones, which they do by themselves when a token is refused.

use std::collections::BTreeMap;
use std::time::Duration;

/// The sessions that this member knows of.
#[derive(Debug)]
pub struct Tokens {
    life: Duration,
    by_token: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    user: String,
    until: Duration,
}

impl Tokens {
    /// None yet; each will live for `life` after its last use.
    #[must_use]
    pub fn new(life: Duration) -> Self {
        Self { life, by_token: BTreeMap::new() }
    }

    /// A session begins. Those that ended meanwhile are forgotten.
    pub fn begin(&mut self, token: String, user: String, now: Duration) {
        self.by_token.retain(|_, held| held.until > now);
        self.by_token.insert(token, Held { user, until: now + self.life });
    }

    /// Whose token it is; using it lengthens its life.
    pub fn user(&mut self, token: &str, now: Duration) -> Option<String> {
        let held = self.by_token.get_mut(token).filter(|held| held.until > now)?;
        held.until = now + self.life;
        Some(held.user.clone())
    }

    /// All sessions of a user end.
    pub fn end(&mut self, user: &str) {
        self.by_token.retain(|_, held| held.user != user);
    }

    /// All sessions end.
    pub fn end_all(&mut self) {
        self.by_token.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_while_it_is_used_and_ends_with_its_user() {
        let at = Duration::from_secs;
        let mut tokens = Tokens::new(at(10));
        tokens.begin("a.1".into(), "ann".into(), at(0));
        tokens.begin("b.2".into(), "bob".into(), at(0));
        assert_eq!(tokens.user("a.1", at(9)).as_deref(), Some("ann"));
        assert_eq!(tokens.user("a.1", at(18)).as_deref(), Some("ann"));
        assert_eq!(tokens.user("b.2", at(10)), None);
        assert_eq!(tokens.user("c.3", at(10)), None);
        tokens.end("ann");
        assert_eq!(tokens.user("a.1", at(18)), None);
        tokens.begin("d.4".into(), "bob".into(), at(20));
        assert_eq!(tokens.by_token.len(), 1);
    }
}
