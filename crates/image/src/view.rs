//! Whose images somebody sees. Everybody shares one view. A principal who has a login of its own at a registry,
//! or has brought an image itself, has names of its own beside it, and nobody else's view changes by what it does.
//! The trees of layers are shared by all; who may have one has shown that it could have it without us.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use run::PrincipalName;
use serde::{Deserialize, Serialize};

use crate::credentials::Credential;
use crate::disk::key;
use crate::registry::Registries;

/// The logins that the operator has given to principals.
pub trait Logins: fmt::Debug + Send + Sync + 'static {
    /// The principal's own credential for a registry. It is asked before every use, so that one that is taken
    /// back opens nothing any more.
    fn find(&self, principal: &PrincipalName, registry: &str) -> Option<Credential>;
}

/// Nobody has one.
#[derive(Clone, Copy, Debug)]
pub struct NoLogins;

impl Logins for NoLogins {
    fn find(&self, _: &PrincipalName, _: &str) -> Option<Credential> {
        None
    }
}

/// Which of the images of one name is meant.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    Everybodys,
    /// What the name means to this principal: an image of its own, or else everybody's.
    SeenBy(&'a PrincipalName),
    /// This principal's own and no other.
    Own(&'a PrincipalName),
}

/// Who has shown that it could have a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ShownTo {
    #[default]
    Everybody,
    Only(BTreeSet<PrincipalName>),
}

impl ShownTo {
    pub(crate) fn one(owner: Option<&PrincipalName>) -> Self {
        owner.map_or(Self::Everybody, |owner| Self::Only([owner.clone()].into()))
    }

    pub(crate) fn includes(&self, owner: Option<&PrincipalName>) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(some) => owner.is_some_and(|owner| some.contains(owner)),
        }
    }

    pub(crate) fn add(&mut self, more: Self) {
        match (self, more) {
            (Self::Everybody, _) => {}
            (only, Self::Everybody) => *only = Self::Everybody,
            (Self::Only(some), Self::Only(more)) => some.extend(more),
        }
    }
}

/// One pull's side of it: under whose name the image will be kept, and with whose credentials it is fetched.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) owner: Option<PrincipalName>,
    pub(crate) registries: Arc<Registries>,
}

impl View {
    pub(crate) fn key(&self, reference: &str) -> String {
        key(reference, self.owner.as_ref())
    }
}

/// A principal with its login at one registry. A new credential is a new account, which has proved nothing.
pub(crate) struct Account {
    pub(crate) id: u64,
    credential: Credential,
    pub(crate) view: View,
    /// Until when the registry's word holds that the account may have an image, by the image's key.
    proved: Mutex<HashMap<String, Instant>>,
}

impl Account {
    pub(crate) fn has_proved(&self, key: &str) -> bool {
        let proved = self.proved.lock().expect("no holder panics");
        proved.get(key).is_some_and(|until| *until > Instant::now())
    }

    pub(crate) fn prove(&self, key: String, life: Duration) {
        let (mut proved, now) = (self.proved.lock().expect("no holder panics"), Instant::now());
        proved.retain(|_, until| *until > now);
        proved.insert(key, now + life);
    }
}

/// Who is asking, as far as images go.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) name: Option<PrincipalName>,
    /// Where it has a login of its own.
    pub(crate) account: Option<Arc<Account>>,
}

impl Asker {
    /// Under which a name can be kept that the asker sees.
    pub(crate) fn names(&self, reference: &str) -> Vec<String> {
        let own = self.name.as_ref().map(|owner| key(reference, Some(owner)));
        own.into_iter().chain([reference.to_owned()]).collect()
    }
}

/// The accounts that have been used.
pub(crate) struct Accounts {
    logins: Arc<dyn Logins>,
    made: AtomicU64,
    used: Mutex<HashMap<(PrincipalName, String), Arc<Account>>>,
}

impl Accounts {
    pub(crate) fn new(logins: Arc<dyn Logins>) -> Self {
        Self { logins, made: AtomicU64::default(), used: Mutex::default() }
    }

    pub(crate) fn of(
        &self,
        principal: &PrincipalName,
        registry: &str,
        registries: &Registries,
    ) -> Option<Arc<Account>> {
        let found = self.logins.find(principal, registry);
        let place = (principal.clone(), registry.to_owned());
        let mut used = self.used.lock().expect("no holder panics");
        let Some(credential) = found else {
            used.remove(&place);
            return None;
        };
        if let Some(account) = used.get(&place).filter(|account| account.credential == credential) {
            return Some(Arc::clone(account));
        }
        let account = Arc::new(Account {
            id: self.made.fetch_add(1, Ordering::Relaxed),
            view: View {
                owner: Some(principal.clone()),
                registries: Arc::new(registries.of(registry, credential.clone())),
            },
            credential,
            proved: Mutex::default(),
        });
        used.insert(place, Arc::clone(&account));
        Some(account)
    }

    pub(crate) fn has_login(&self, principal: &PrincipalName, registry: &str) -> bool {
        self.logins.find(principal, registry).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_for_those_who_have_shown_that_they_could_have_it() {
        let [alice, bob] = ["alice", "bob"].map(|name| PrincipalName::parse(name).unwrap());
        let everybody = ShownTo::one(None);
        let mut alices = ShownTo::one(Some(&alice));
        for (shown, owner, included) in [
            (&everybody, None, true),
            (&everybody, Some(&bob), true),
            (&alices, None, false),
            (&alices, Some(&alice), true),
            (&alices, Some(&bob), false),
        ] {
            assert_eq!(shown.includes(owner), included, "{shown:?} {owner:?}");
        }
        alices.add(ShownTo::one(Some(&bob)));
        assert!(alices.includes(Some(&bob)) && alices.includes(Some(&alice)) && !alices.includes(None));
        alices.add(ShownTo::one(None));
        assert_eq!(alices, everybody);
        alices.add(ShownTo::one(Some(&bob)));
        assert_eq!(alices, everybody, "what is everybody's stays so");
    }
}
