//! The thin shell: writes changes of the ruleset to the kernel, each time in one transaction.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nix::sys::socket::{setsockopt, sockopt};
use nlink::netlink::nftables::Transaction;
use nlink::netlink::nftables::types::{Family, Set, SetElement};
use nlink::netlink::{Connection, Nftables};

use super::model::{Changes, Key, Value};
use super::rules::{self, TABLE};

/// A transaction is one message to the kernel, and must fit in the socket's buffer.
const BUFFER_BYTES: usize = 64 << 20;
/// The kernel limits the bytes of all elements of one operation to 64 KiB.
const ELEMENTS_AN_OPERATION: usize = 256;

/// The table in the kernel.
pub struct Table {
    connection: Connection<Nftables>,
    pods: (Ipv4Addr, u8),
}

impl Table {
    /// Opens the kernel's tables of this network namespace; `pods` are the addresses of the cluster's pods.
    pub fn open(pods: (Ipv4Addr, u8)) -> nlink::Result<Self> {
        let connection = Connection::<Nftables>::new()?;
        setsockopt(connection.socket(), sockopt::SndBufForce, &BUFFER_BYTES).map_err(std::io::Error::from)?;
        Ok(Self { connection, pods })
    }

    /// Replaces whatever the table holds with `changes` from nothing, without a gap.
    pub async fn replace(&self, changes: &Changes) -> nlink::Result<()> {
        let transaction = rules::skeleton(self.connection.transaction())?;
        self.write(transaction, changes)?.commit(&self.connection).await
    }

    /// Makes changes.
    pub async fn change(&self, changes: &Changes) -> nlink::Result<()> {
        self.write(self.connection.transaction(), changes)?.commit(&self.connection).await
    }

    /// Removes the table.
    pub async fn remove() -> nlink::Result<()> {
        Connection::<Nftables>::new()?.del_table_if_exists(TABLE, Family::Ip).await.map(drop)
    }

    /// The order matters: what is referred to comes before what refers to it, and goes after it.
    fn write(&self, mut transaction: Transaction, changes: &Changes) -> nlink::Result<Transaction> {
        for (key, change) in changes {
            let Key::Chain(name) = key else { continue };
            transaction = match change.before {
                None => transaction.add_chain(rules::chain(name)?),
                Some(_) => transaction.flush_chain(TABLE, name, Family::Ip),
            };
        }
        let mut removed = Batches::default();
        let mut added = Batches::default();
        for (key, change) in changes {
            let Some(container) = rules::container(key) else { continue };
            // A connection may be between its choice of an endpoint and its masquerading. A pod's address that stays here
            // does nothing, and a node has few.
            let stays = matches!(key, Key::Hairpin(_));
            if change.before.is_some() && !stays {
                removed.push(&container, rules::element(key));
            }
            if let Some(value) = &change.after {
                added.push(&container, rules::element_with(key, value)?);
            }
        }
        transaction = removed.fold(transaction, Transaction::del_set_elements);
        for (key, change) in changes {
            let (Key::Chain(name), Some(Value::Steps(steps))) = (key, &change.after) else { continue };
            transaction =
                rules::rules(name, steps, self.pods)?.into_iter().fold(transaction, Transaction::add_rule);
        }
        transaction = added.fold(transaction, Transaction::add_set_elements);
        let gone = changes.iter().filter(|(_, change)| change.after.is_none());
        Ok(gone.fold(transaction, |transaction, (key, _)| match key {
            Key::Chain(name) => transaction.del_chain(TABLE, name, Family::Ip),
            _ => transaction,
        }))
    }
}

/// Elements by the set they belong to.
#[derive(Default)]
struct Batches(BTreeMap<String, (Option<Set>, Vec<SetElement>)>);

impl Batches {
    fn push(&mut self, container: &Set, element: Option<SetElement>) {
        let batch = self.0.entry(container.name().to_owned()).or_default();
        batch.0.get_or_insert_with(|| container.clone());
        batch.1.extend(element);
    }

    fn fold(
        self,
        transaction: Transaction,
        operation: impl Fn(Transaction, &Set, &[SetElement]) -> Transaction,
    ) -> Transaction {
        self.0.into_values().fold(transaction, |transaction, (container, elements)| {
            let Some(container) = container else { return transaction };
            elements
                .chunks(ELEMENTS_AN_OPERATION)
                .fold(transaction, |transaction, part| operation(transaction, &container, part))
        })
    }
}
