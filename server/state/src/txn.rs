//! Transactions: compare, then one list of operations or the other, all in one revision.

use crate::error::Fault;
use crate::lease::Leases;
use crate::mvcc::view::{Found, View};
use crate::op;
use ferretcd_types::{
    Compare, CompareResult, CompareTarget, Error, KeyValue, LeaseId, OpReply, Put, Txn, TxnOp, TxnReply,
};
use std::cmp::Ordering;

/// Runs a transaction on a view: all compares of the tree against the state before it, then the checks of the chosen
/// operations, then the operations. A refusal comes before the first change.
pub(crate) fn run(view: &mut View<'_>, leases: &Leases, txn: &Txn) -> Result<TxnReply, Fault> {
    let path = choose(view, txn)?;
    check(view, leases, txn, &path)?;
    execute(view, txn, &path)
}

/// Which branch is taken, here and in each transaction nested in it, in order.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn branch<'t>(&self, txn: &'t Txn) -> &'t [TxnOp] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }
}

fn choose(view: &View<'_>, txn: &Txn) -> Result<Path, Fault> {
    let mut path = Path { succeeded: true, nested: Vec::new() };
    for compare in &txn.compares {
        if !holds(view, compare)? {
            path.succeeded = false;
            break;
        }
    }
    for op in path.branch(txn) {
        if let TxnOp::Txn(inner) = op {
            path.nested.push(choose(view, inner)?);
        }
    }
    Ok(path)
}

fn holds(view: &View<'_>, compare: &Compare) -> Result<bool, Fault> {
    let (found, _) = view.select(&compare.range, view.revision(), usize::MAX);
    if found.is_empty() {
        // A key that is not there compares as one of zeroes, except that it has no value to compare.
        let is_value = matches!(compare.target, CompareTarget::Value(_));
        return Ok(!is_value && satisfies(compare, &KeyValue::default()));
    }
    for found in &found {
        if !satisfies(compare, &subject(view, compare, found)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// As much of a key as the comparison looks at: only values and leases need the record.
fn subject(view: &View<'_>, compare: &Compare, found: &Found) -> Result<KeyValue, Fault> {
    Ok(match compare.target {
        CompareTarget::Value(_) | CompareTarget::Lease(_) => view.fetch(found)?,
        CompareTarget::Version(_) | CompareTarget::Create(_) | CompareTarget::Mod(_) => KeyValue {
            create_revision: found.change.created,
            mod_revision: found.change.main,
            version: found.change.version,
            ..KeyValue::default()
        },
    })
}

fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(v) => kv.version.cmp(v),
        CompareTarget::Create(v) => kv.create_revision.cmp(v),
        CompareTarget::Mod(v) => kv.mod_revision.cmp(v),
        CompareTarget::Value(v) => kv.value.cmp(v),
        CompareTarget::Lease(v) => kv.lease.cmp(&LeaseId(*v)),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}

fn check(view: &View<'_>, leases: &Leases, txn: &Txn, path: &Path) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for op in path.branch(txn) {
        match op {
            TxnOp::Range(range) => op::check_range(view, range)?,
            TxnOp::Put(put) => op::check_put(view, leases, put)?,
            TxnOp::DeleteRange(_) => {}
            TxnOp::Txn(inner) => check(view, leases, inner, next(&mut nested)?)?,
        }
    }
    Ok(())
}

fn execute(view: &mut View<'_>, txn: &Txn, path: &Path) -> Result<TxnReply, Fault> {
    let mut responses = Vec::new();
    let mut nested = path.nested.iter();
    for op in path.branch(txn) {
        responses.push(match op {
            TxnOp::Range(range) => OpReply::Range(view.range(range)?),
            TxnOp::Put(put) => OpReply::Put(op::put(view, put)?),
            TxnOp::DeleteRange(delete) => OpReply::DeleteRange(op::delete_range(view, delete)?),
            TxnOp::Txn(inner) => OpReply::Txn(execute(view, inner, next(&mut nested)?)?),
        });
    }
    Ok(TxnReply { revision: view.revision(), succeeded: path.succeeded, responses })
}

fn next<'p>(nested: &mut impl Iterator<Item = &'p Path>) -> Result<&'p Path, Error> {
    nested.next().ok_or_else(|| Error::internal("a transaction's path is shorter than its operations"))
}

/// True when a transaction holds a put anywhere: such a one needs room.
pub(crate) fn has_puts(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Put(Put { .. }) => true,
        TxnOp::Range(_) | TxnOp::DeleteRange(_) => false,
        TxnOp::Txn(inner) => has_puts(inner),
    })
}
