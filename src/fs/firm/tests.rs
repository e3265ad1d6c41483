use super::*;

const DIR: Ino = 10;
const PARENT: Ino = 2;

fn these(due: Due) -> Vec<(Ino, Vec<u8>)> {
    match due {
        Due::Nothing => Vec::new(),
        Due::These(helpers) => helpers.iter().map(|h| (h.dir, h.name.to_vec())).collect(),
        Due::Whole => panic!("everything is due"),
        Due::Broken => panic!("broken"),
    }
}

fn named(dir: Ino, name: &[u8]) -> HelperName<'_> {
    (dir, Cow::Borrowed(name))
}

fn one(firm: &Firm, dir: Ino, name: &[u8]) -> Helper {
    match firm.due(&[named(dir, name)], None) {
        Due::These(mut helpers) => helpers.remove(0),
        _ => panic!("exactly one is due"),
    }
}

#[test]
fn what_is_due_is_what_was_written_and_is_named() {
    let firm = Firm::default();
    firm.wrote(PARENT, DIR, DIR_FILE);
    firm.wrote(PARENT, DIR, b"a.name");
    firm.wrote(PARENT, DIR, b"b.name");
    let asked = [named(DIR, DIR_FILE), named(DIR, b"a.name"), named(99, DIR_FILE)];
    let found = these(firm.due(&asked, None));
    assert_eq!(found, [(DIR, DIR_FILE.to_vec()), (DIR, b"a.name".to_vec())]);
    assert_eq!(these(firm.due(&[named(99, DIR_FILE)], None)), []);
    // The whole directory, nothing twice; and as a child of its parent.
    assert_eq!(these(firm.due(&asked, Some(DIR))).len(), 3);
    assert_eq!(these(firm.due(&[], Some(PARENT))), [(DIR, DIR_FILE.to_vec())]);
}

#[test]
fn a_helper_written_again_while_it_was_flushed_stays_due() {
    let firm = Firm::default();
    firm.wrote(PARENT, DIR, DIR_FILE);
    let flushing = one(&firm, DIR, DIR_FILE);
    firm.wrote(PARENT, DIR, DIR_FILE);
    firm.flushed(&flushing);
    assert!(!firm.all_firm());
    firm.flushed(&one(&firm, DIR, DIR_FILE));
    assert!(firm.all_firm());
}

#[test]
fn a_whole_flush_covers_what_it_began_with() {
    let firm = Firm::default();
    firm.wrote(PARENT, DIR, b"before");
    firm.born(1, DIR);
    let began = firm.begin_whole();
    firm.wrote(PARENT, DIR, b"during");
    firm.wrote(DIR, 11, DIR_FILE);
    firm.born(2, DIR);
    firm.changed(1);
    firm.end_whole(began);
    assert_eq!(
        these(firm.due(&[], Some(DIR))),
        [(DIR, b"during"[..].into()), (11, DIR_FILE.into())]
    );
    assert!(!firm.is_new(1) && firm.is_new(2));
    assert!(firm.is_changed(1) && firm.is_changed(2));
    firm.end_whole(firm.begin_whole());
    assert!(firm.all_firm() && !firm.is_new(2) && !firm.is_changed(1));
    let record = firm.record.lock();
    assert!(record.dirs.is_empty() && record.objects.is_empty());
}

#[test]
fn a_whole_flush_that_fails_covers_nothing() {
    let firm = Firm::default();
    firm.wrote(PARENT, DIR, DIR_FILE);
    firm.begin_whole();
    assert!(!firm.all_firm());
    assert_eq!(firm.counts(), Flushes::default());
}

#[test]
fn a_full_record_asks_for_a_whole_flush_and_stays_small() {
    let firm = Firm::with_room(100);
    (0..950).for_each(|dir| firm.wrote(PARENT, dir, DIR_FILE));
    assert!(firm.record.lock().helpers <= 100);
    assert!(matches!(firm.due(&[named(5000, DIR_FILE)], None), Due::Whole));
    let began = firm.begin_whole();
    firm.wrote(PARENT, 2000, DIR_FILE);
    firm.end_whole(began);
    assert_eq!(these(firm.due(&[named(5, DIR_FILE), named(2000, DIR_FILE)], None)).len(), 1);
}

#[test]
fn a_record_that_overflows_during_a_whole_flush_stays_lost() {
    let firm = Firm::with_room(10);
    let began = firm.begin_whole();
    (0..20).for_each(|dir| firm.wrote(PARENT, dir, DIR_FILE));
    (0..20).for_each(|ino| firm.born(ino, DIR));
    firm.end_whole(began);
    assert!(matches!(firm.due(&[], None), Due::Whole));
    assert!(firm.is_changed(5000));
    firm.end_whole(firm.begin_whole());
    assert!(firm.all_firm() && !firm.is_changed(5000));
}

#[test]
fn objects_that_were_forgotten_count_as_durable_and_changed() {
    let firm = Firm::with_room(100);
    (0..101).for_each(|ino| firm.born(ino, DIR));
    assert!(!firm.is_new(0) && firm.is_new(100));
    assert!(firm.is_changed(0) && firm.is_changed(7777));
    assert!(firm.record.lock().objects.len() <= 100);
}

#[test]
fn many_helpers_are_one_whole_flush() {
    let firm = Firm::default();
    (0..=MANY as u64).for_each(|n| firm.wrote(PARENT, DIR, format!("{n}").as_bytes()));
    assert!(matches!(firm.due(&[], Some(DIR)), Due::Whole));
    assert_eq!(these(firm.due(&[named(DIR, b"7")], None)).len(), 1);
}

#[test]
fn a_helper_that_could_not_be_flushed_is_never_believed_again() {
    let firm = Firm::with_room(10);
    firm.wrote(PARENT, DIR, b"x.name");
    firm.broke(&one(&firm, DIR, b"x.name"));
    firm.end_whole(firm.begin_whole());
    (100..200).for_each(|dir| firm.wrote(PARENT, dir, DIR_FILE));
    assert!(matches!(firm.due(&[named(DIR, b"x.name")], None), Due::Broken));
    // Until its name goes, or it is written anew.
    firm.dropped(DIR, b"x.name");
    firm.end_whole(firm.begin_whole());
    assert_eq!(these(firm.due(&[named(DIR, b"x.name")], None)), []);
}

#[test]
fn what_is_settled_is_not_new_whatever_directory_it_is_in() {
    let firm = Firm::default();
    (1..4).for_each(|ino| firm.born(ino, DIR));
    firm.moved(2, PARENT);
    firm.settled_in(DIR);
    assert!(!firm.is_new(1) && firm.is_new(2) && !firm.is_new(3));
    firm.settled(2);
    assert!(!firm.is_new(2) && firm.is_changed(2));
    firm.gone(2);
    assert!(!firm.is_changed(2));
}

#[test]
fn removed_directories_leave_no_trace() {
    let firm = Firm::default();
    firm.wrote(PARENT, DIR, DIR_FILE);
    firm.wrote(PARENT, DIR, b"a.name");
    firm.dropped(DIR, b"a.name");
    firm.dropped_dir(DIR);
    let record = firm.record.lock();
    assert!(record.dirs.is_empty() && record.helpers == 0);
}
