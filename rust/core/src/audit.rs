//! Every block is in exactly one place, every request on exactly one list, and the sums agree.

use crate::error::Error;
use crate::ids::Group;
use crate::pool::Pool;
use crate::request::Phase;
use crate::schedule::Scheduler;
use crate::table::{BlockTable, Tables};

/// Checks the books of a scheduler; linear in blocks and requests.
pub(crate) fn audit(scheduler: &Scheduler) -> Result<(), Error> {
    for (_, pool) in scheduler.pools.each() {
        pool.audit()?;
    }
    audit_tables(scheduler, Group::Full, &scheduler.pools.full, |tables| &tables.full)?;
    audit_tables(scheduler, Group::Swa, &scheduler.pools.swa, |tables| &tables.swa)?;
    let wrong = |what: String| Err(Error::Audit(what));
    let slots = scheduler.pools.state.counts();
    if slots.open + slots.quarantined < scheduler.running.len() || slots.sealed != 0 {
        return wrong(format!("{slots:?} for {} running requests", scheduler.running.len()));
    }
    audit_lists(scheduler)
}

/// Handles and slot table agree, block by block and in sum.
fn audit_tables(
    scheduler: &Scheduler,
    group: Group,
    pool: &Pool,
    table: impl Fn(&Tables) -> &BlockTable,
) -> Result<(), Error> {
    let (mut held, mut reserved) = (0, 0);
    for (_, phase) in scheduler.requests.iter() {
        if let Some(active) = phase.active() {
            let table = table(&active.tables);
            held += table.audit().map_err(|what| Error::Audit(format!("{group}: {what}")))?;
            reserved += table.num_reserved();
        }
    }
    let counts = pool.counts();
    if (held, reserved) != (counts.open + counts.sealed, counts.reserved) {
        return Err(Error::Audit(format!(
            "{group}: the tables hold {held} blocks and are promised {reserved}; {counts:?}"
        )));
    }
    Ok(())
}

fn audit_lists(scheduler: &Scheduler) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Audit(what));
    let (running, queue) = (&scheduler.running, &scheduler.queue);
    let (mut num_waiting, mut num_tokens) = (0, 0);
    for (_, phase) in scheduler.requests.iter() {
        if let Phase::Waiting(waiting) = phase {
            num_waiting += 1;
            num_tokens += waiting.request.tokens.len();
        }
    }
    let all_wait = queue.places().all(|p| scheduler.requests.at(p).active().is_none());
    let all_run = running.iter().all(|&(_, p)| scheduler.requests.at(p).active().is_some());
    if !all_wait || !all_run || !running.is_sorted() {
        return wrong("a request is on the wrong list, or out of order".into());
    }
    if (num_waiting, num_tokens) != (queue.len(), queue.num_tokens())
        || running.len() + queue.len() != scheduler.requests.len()
    {
        return wrong(format!(
            "{num_waiting} requests with {num_tokens} tokens wait; the queue says {} and {}; \
             {} run; there are {}",
            queue.len(),
            queue.num_tokens(),
            running.len(),
            scheduler.requests.len()
        ));
    }
    Ok(())
}
