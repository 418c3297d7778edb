//! Every block is in exactly one place, every request on exactly one list, and the sums agree.

use crate::error::Error;
use crate::ids::Group;
use crate::pool::Pool;
use crate::request::{Active, Phase};
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
    let holders = actives(scheduler).count() + scheduler.rooms.landings().count();
    if slots.open + slots.quarantined < holders || slots.sealed != 0 {
        return wrong(format!("{slots:?} for {holders} requests that hold one"));
    }
    let (rows, held) = (scheduler.pools.aux.counts(), scheduler.rooms.num_aux_rows());
    if rows.open != held || rows.sealed + rows.shared + rows.cached != 0 {
        return wrong(format!("{rows:?} for {held} requests that hold an aux row"));
    }
    audit_cache(scheduler)?;
    audit_lists(scheduler)
}

/// Everybody who holds blocks of its own: those that run, and those that will when a row is vacant.
fn actives(scheduler: &Scheduler) -> impl Iterator<Item = &Active> {
    let running = scheduler.requests.iter().filter_map(|(_, phase)| phase.active());
    running.chain(scheduler.rooms.seats().map(|decoding| &decoding.active))
}

/// Handles and slot table agree, block by block and in sum.
fn audit_tables(
    scheduler: &Scheduler,
    group: Group,
    pool: &Pool,
    table: impl Fn(&Tables) -> &BlockTable,
) -> Result<(), Error> {
    let (mut held, mut readers, mut reserved) = (0, 0, 0);
    let mut add = |table: &BlockTable| -> Result<(), Error> {
        let own = table.audit().map_err(|what| Error::Audit(format!("{group}: {what}")))?;
        reserved += table.num_reserved();
        (held, readers) = (held + own.0, readers + own.1);
        Ok(())
    };
    for active in actives(scheduler) {
        add(table(&active.tables))?;
    }
    for (_, landing) in scheduler.rooms.landings() {
        match group {
            Group::Full => add(&landing.full)?,
            _ => add(&landing.swa)?,
        }
    }
    if group == Group::Swa {
        for save in actives(scheduler).flat_map(|active| &active.reuse.left.saves) {
            let caught = save.num_caught();
            (held, readers) = (held + caught.0, readers + caught.1);
        }
    }
    let counts = pool.counts();
    let found = (counts.open + counts.sealed, pool.num_holds().0, counts.reserved);
    if (held, readers, reserved) != found {
        return Err(Error::Audit(format!(
            "{group}: the tables hold {held} blocks and {readers} of others, and are promised \
             {reserved}; {found:?}, {counts:?}"
        )));
    }
    Ok(())
}

/// The cache holds what it says, and its users are the requests that run.
fn audit_cache(scheduler: &Scheduler) -> Result<(), Error> {
    let trie = &scheduler.prefix.trie;
    let (window, slots) = trie.audit().map_err(|what| Error::Audit(format!("cache: {what}")))?;
    let active: Vec<_> = actives(scheduler).collect();
    let landed = scheduler.rooms.landings().map(|(_, landing)| &landing.reuse);
    let reuses = active.iter().map(|active| &active.reuse).chain(landed);
    let users = reuses.filter(|reuse| reuse.left.node.is_some()).count();
    let restores = active.iter().filter(|active| active.reuse.left.restore.is_some()).count();
    let pools = &scheduler.pools;
    let found = [
        (users, trie.num_users()),
        (pools.full.num_holds().1, trie.len()),
        (pools.swa.num_holds().1, window),
        (pools.state.num_holds().1, slots),
        (pools.state.num_holds().0, restores),
    ];
    if found.iter().any(|(is, should)| is != should) {
        return Err(Error::Audit(format!(
            "users, holds on full, window and state blocks, and restores disagree: {found:?}"
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
    let is_measured =
        |active: &Active| active.covered() == active.tables.full.end().min(active.tables.swa.end());
    if !actives(scheduler).all(is_measured) {
        return wrong("a request does not know how far its tables reach".into());
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
