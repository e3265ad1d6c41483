//! Aliases: pointed at a key, and never by accident away from another one.

use super::facts::look;
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;
use crate::provision::Teller;
use crate::provision::account::{Account, Refused};
use crate::provision::settling::settled;

/// Away from which key an alias may be pointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repoint<'a> {
    /// From none: it is only made.
    Never,
    /// From this one, named by its ARN.
    From(&'a str),
    /// From any.
    Any,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointed {
    /// It pointed there already.
    Unchanged,
    /// It is new.
    Created,
    /// It pointed at another key before.
    Moved,
}

/// Points `alias/NAME` at a key.
pub fn point_alias(
    account: &Account,
    alias: &str,
    arn: &str,
    repoint: Repoint<'_>,
    teller: &dyn Teller,
) -> Result<Pointed, Refused> {
    let pointed = match target(account, alias)? {
        Some(present) if present == arn => return Ok(Pointed::Unchanged),
        Some(present) => {
            allow_move(alias, &present, repoint)?;
            send(account, alias, arn, Call::Update, teller)?;
            Pointed::Moved
        }
        None => match send(account, alias, arn, Call::Create, teller) {
            Ok(()) => Pointed::Created,
            // A first try whose answer was lost, or somebody else meanwhile: which, has to be seen.
            Err(refused) if refused.code == "AlreadyExistsException" => {
                return settle(account, alias, arn, repoint, teller, &refused);
            }
            Err(refused) => return Err(refused),
        },
    };
    await_target(account, alias, arn, teller)?;
    teller.done(&format!("{alias} points to {arn}"));
    Ok(pointed)
}

/// The alias is there, although nobody saw it.
fn settle(
    account: &Account,
    alias: &str,
    arn: &str,
    repoint: Repoint<'_>,
    teller: &dyn Teller,
    refused: &Refused,
) -> Result<Pointed, Refused> {
    let seen = settled(account, alias, teller, || {
        Ok(target(account, alias)?.ok_or_else(|| "not to be seen".to_owned()))
    })?;
    match seen {
        Ok(present) if present == arn => Ok(Pointed::Created),
        Ok(present) => {
            allow_move(alias, &present, repoint)?;
            send(account, alias, arn, Call::Update, teller)?;
            await_target(account, alias, arn, teller)?;
            Ok(Pointed::Moved)
        }
        Err(_) => Err(refused.clone()),
    }
}

/// The key an alias points to.
fn target(account: &Account, alias: &str) -> Result<Option<String>, Refused> {
    match look(account, alias) {
        Ok(head) => Ok(Some(head.arn)),
        Err(refused) if refused.code == "NotFoundException" => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn allow_move(alias: &str, present: &str, repoint: Repoint<'_>) -> Result<(), Refused> {
    match repoint {
        Repoint::Any => Ok(()),
        Repoint::From(old) if old == present => Ok(()),
        Repoint::From(_) | Repoint::Never => {
            let text = format!(
                "{alias} points to another key ({present}), and somebody may rely on that; it was \
                 left alone: choose another alias, or point it elsewhere on purpose"
            );
            Err(Refused::here(Class::Misconfigured, text))
        }
    }
}

#[derive(Clone, Copy)]
enum Call {
    Create,
    Update,
}

/// Where aliases are made, a key just made may not be known yet.
fn send(
    account: &Account,
    alias: &str,
    arn: &str,
    call: Call,
    teller: &dyn Teller,
) -> Result<(), Refused> {
    let mut last = None;
    let sent = settled(account, alias, teller, || match send_once(account, alias, arn, call) {
        Err(refused) if refused.code == "NotFoundException" => {
            last = Some(refused);
            Ok(Err(format!("waiting for {arn} to be known")))
        }
        other => other.map(Ok),
    })?;
    match (sent, last) {
        (Err(_), Some(refused)) => Err(refused),
        _ => Ok(()),
    }
}

/// Both may be sent twice: the second time changes nothing.
fn send_once(account: &Account, alias: &str, arn: &str, call: Call) -> Result<(), Refused> {
    let (name, key) = (alias.to_owned(), arn.to_owned());
    match call {
        Call::Create => account.ask("CreateAlias", alias, move |clients| {
            let request = clients.kms.create_alias().alias_name(&name).target_key_id(&key);
            async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
        }),
        Call::Update => account.ask("UpdateAlias", alias, move |clients| {
            let request = clients.kms.update_alias().alias_name(&name).target_key_id(&key);
            async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
        }),
    }
}

/// Waits until the alias shows its key; AWS has taken the change already, so patience is no failure.
fn await_target(
    account: &Account,
    alias: &str,
    arn: &str,
    teller: &dyn Teller,
) -> Result<(), Refused> {
    let seen = settled(account, alias, teller, || match target(account, alias)? {
        Some(present) if present == arn => Ok(Ok(())),
        Some(present) => Ok(Err(format!("pointing to {present}"))),
        None => Ok(Err("not to be seen".to_owned())),
    })?;
    if let Err(state) = seen {
        log::warn!(
            "{alias} is still {state}; AWS has taken the change and will show it in a while"
        );
    }
    Ok(())
}
