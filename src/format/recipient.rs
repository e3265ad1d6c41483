//! Recipient records and data-key slots: the wrapped copies of a key.
//!
//! Invariant: what is decoded is bounded (16 recipients a slot, 2048 bytes of reference, 6144 bytes
//! of wrapped key) and encodes to the same bytes. Must not know how anything is wrapped.

use super::bytes::{Reader, is_zero};
use super::{DataKeyId, FormatError};

/// Most recipients of one slot.
pub const MAX_RECIPIENTS: usize = 16;
/// Longest key reference, bytes.
pub const MAX_REF: usize = 2048;
/// Longest wrapped key, bytes.
pub const MAX_WRAPPED: usize = 6144;
/// Bytes of a key slot before its recipient records.
pub const SLOT_FIXED: usize = 56;
/// Bytes of a recipient record before its reference.
const RECORD_FIXED: usize = 12;

/// How a wrapped copy of a key was wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum RecipientKind {
    /// Under the local master key in the descriptor.
    LocalMaster = 1,
    /// HPKE to an X25519 public key.
    X25519 = 2,
    /// AWS KMS.
    AwsKms = 3,
}

impl RecipientKind {
    fn decode(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::LocalMaster),
            2 => Ok(Self::X25519),
            3 => Ok(Self::AwsKms),
            _ => Err(FormatError::Field("recipient kind")),
        }
    }
    /// An ARN is shown to people before anything vouches for it: visible ASCII.
    fn ref_ok(self, key_ref: &[u8]) -> bool {
        let len = key_ref.len();
        match self {
            Self::LocalMaster => len == 0,
            Self::X25519 => len == 32,
            Self::AwsKms => {
                (1..=MAX_REF).contains(&len) && key_ref.iter().all(u8::is_ascii_graphic)
            }
        }
    }
    fn wrapped_len_ok(self, len: usize) -> bool {
        match self {
            Self::LocalMaster => len == 48,
            Self::X25519 => len == 80,
            Self::AwsKms => (1..=MAX_WRAPPED).contains(&len),
        }
    }
}

/// One wrapped copy of a key, or (with empty `wrapped`) the name of a wrapping key.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Recipient {
    /// Scheme.
    pub kind: RecipientKind,
    /// Epoch of the wrapping key.
    pub epoch: u32,
    /// Which key: empty (local master), 32-byte public key, key ARN.
    pub key_ref: Vec<u8>,
    /// The wrapped key.
    pub wrapped: Vec<u8>,
}

/// Does a record carry a wrapped key, or only name a wrapping key?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Wrapped,
    NameOnly,
}

impl Recipient {
    /// Bytes of the record.
    pub fn encoded_len(&self) -> usize {
        RECORD_FIXED + self.key_ref.len() + self.wrapped.len()
    }
    /// Refuses lengths and references the kind does not have: `Field("recipient reference")`, then
    /// `Field("recipient wrapped key")`.
    pub(super) fn check(&self, role: Role) -> Result<(), FormatError> {
        if !self.kind.ref_ok(&self.key_ref) {
            return Err(FormatError::Field("recipient reference"));
        }
        let len = self.wrapped.len();
        let fits = match role {
            Role::Wrapped => self.kind.wrapped_len_ok(len),
            Role::NameOnly => len == 0,
        };
        if fits { Ok(()) } else { Err(FormatError::Field("recipient wrapped key")) }
    }
    /// Appends the record; the lengths have been checked.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.kind as u8, 0]);
        out.extend((self.key_ref.len() as u16).to_le_bytes());
        out.extend((self.wrapped.len() as u16).to_le_bytes());
        out.extend([0, 0]);
        out.extend(self.epoch.to_le_bytes());
        out.extend(&self.key_ref);
        out.extend(&self.wrapped);
    }
    /// Takes one record. Order: kind, reserved, reserved, presence of all bytes, reference length,
    /// wrapped length.
    pub(super) fn decode(r: &mut Reader<'_>, role: Role) -> Result<Self, FormatError> {
        let kind = RecipientKind::decode(r.u8()?)?;
        r.zero(1, "recipient reserved")?;
        let (ref_len, wrapped_len) = (r.u16()?, r.u16()?);
        r.zero(2, "recipient reserved")?;
        let epoch = r.u32()?;
        let key_ref = r.take(usize::from(ref_len))?.to_vec();
        let wrapped = r.take(usize::from(wrapped_len))?.to_vec();
        let recipient = Self { kind, epoch, key_ref, wrapped };
        recipient.check(role)?;
        Ok(recipient)
    }
}

/// One data key of a file with all its wrapped copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeySlot {
    /// Part of the wrapping context.
    pub data_key_id: DataKeyId,
    /// Commitment of the *file key*; checked before anything the key protects.
    pub commitment: [u8; 32],
    /// Wrapped copies, in the order they are tried. Never empty.
    pub recipients: Vec<Recipient>,
}

impl KeySlot {
    /// Bytes the slot needs in a header; compare with `header::slot_len`.
    pub fn encoded_len(&self) -> usize {
        SLOT_FIXED + self.recipients.iter().map(Recipient::encoded_len).sum::<usize>()
    }
    /// Writes the slot into a zeroed place. `Field("recipients")` when there are none, too many, or
    /// more bytes than fit.
    pub fn encode(&self, place: &mut [u8]) -> Result<(), FormatError> {
        let fits = self.encoded_len() <= place.len();
        if !fits || !(1..=MAX_RECIPIENTS).contains(&self.recipients.len()) {
            return Err(FormatError::Field("recipients"));
        }
        let mut records = Vec::new();
        for recipient in &self.recipients {
            recipient.check(Role::Wrapped)?;
            recipient.encode(&mut records);
        }
        place[0] = 1;
        place[1] = self.recipients.len() as u8;
        place[2..4].copy_from_slice(&(records.len() as u16).to_le_bytes());
        place[8..24].copy_from_slice(&self.data_key_id.0);
        place[24..SLOT_FIXED].copy_from_slice(&self.commitment);
        place[SLOT_FIXED..SLOT_FIXED + records.len()].copy_from_slice(&records);
        Ok(())
    }
    /// Reads a slot; `None` when it is empty. Order: state (empty: all zero), count, reserved,
    /// used length, every record, all used bytes consumed, zero padding.
    pub fn decode(place: &[u8]) -> Result<Option<Self>, FormatError> {
        let mut r = Reader::new(place, "key slot length");
        match r.u8()? {
            0 if is_zero(place) => return Ok(None),
            0 => return Err(FormatError::Field("empty key slot")),
            1 => {}
            _ => return Err(FormatError::Field("key slot state")),
        }
        let count = usize::from(r.u8()?);
        if !(1..=MAX_RECIPIENTS).contains(&count) {
            return Err(FormatError::Field("recipients"));
        }
        let used = usize::from(r.u16()?);
        r.zero(4, "key slot reserved")?;
        let (data_key_id, commitment) = (DataKeyId(r.array()?), r.array()?);
        let mut records = Reader::new(r.take(used)?, "recipient length");
        let recipients = (0..count)
            .map(|_| Recipient::decode(&mut records, Role::Wrapped))
            .collect::<Result<Vec<_>, _>>()?;
        if !records.is_done() {
            return Err(FormatError::Field("key slot length"));
        }
        if !is_zero(r.rest()) {
            return Err(FormatError::Field("key slot padding"));
        }
        Ok(Some(Self { data_key_id, commitment, recipients }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: usize = 960;

    fn recipient(kind: RecipientKind) -> Recipient {
        let (ref_len, wrapped_len) = match kind {
            RecipientKind::LocalMaster => (0, 48),
            RecipientKind::X25519 => (32, 80),
            RecipientKind::AwsKms => (75, 184),
        };
        Recipient {
            kind,
            epoch: 0x0a0b_0c0d,
            key_ref: vec![b'r'; ref_len],
            wrapped: vec![b'w'; wrapped_len],
        }
    }
    fn slot(kinds: &[RecipientKind]) -> KeySlot {
        KeySlot {
            data_key_id: DataKeyId([5; 16]),
            commitment: [6; 32],
            recipients: kinds.iter().copied().map(recipient).collect(),
        }
    }
    fn encoded(slot: &KeySlot) -> Vec<u8> {
        let mut place = vec![0; PLACE];
        slot.encode(&mut place).expect("fits");
        place
    }
    fn all() -> KeySlot {
        slot(&[RecipientKind::LocalMaster, RecipientKind::X25519, RecipientKind::AwsKms])
    }
    fn refused(place: &[u8]) -> &'static str {
        match KeySlot::decode(place) {
            Err(FormatError::Field(field)) => field,
            other => panic!("expected a field error: {other:?}"),
        }
    }

    #[test]
    fn slot_round_trips_and_stands_where_the_text_says() {
        let slot = all();
        let place = encoded(&slot);
        assert_eq!(KeySlot::decode(&place), Ok(Some(slot.clone())));
        let used = 60 + 124 + 12 + 75 + 184;
        assert_eq!(slot.encoded_len(), 56 + used);
        assert_eq!(place[..4], [1, 3, (used & 255) as u8, (used >> 8) as u8]);
        assert_eq!((&place[8..24], &place[24..56]), (&[5; 16][..], &[6; 32][..]));
        assert_eq!(place[56..68], [1, 0, 0, 0, 48, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(place[116..128], [2, 0, 32, 0, 80, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert!(is_zero(&place[56 + used..]));
        assert_eq!(KeySlot::decode(&vec![0; PLACE]), Ok(None));
    }

    #[test]
    fn slot_refuses_every_single_defect() {
        let good = encoded(&all());
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            bad
        };
        assert_eq!(refused(&with(0, 0)), "empty key slot");
        assert_eq!(refused(&with(0, 2)), "key slot state");
        assert_eq!(refused(&with(1, 0)), "recipients");
        assert_eq!(refused(&with(1, 17)), "recipients");
        assert_eq!(refused(&with(1, 2)), "key slot length");
        assert_eq!(refused(&with(1, 4)), "recipient length");
        assert_eq!(refused(&with(2, good[2] - 1)), "recipient length");
        assert_eq!(refused(&with(2, good[2] + 1)), "key slot length");
        assert_eq!(refused(&with(3, 0xff)), "key slot length");
        assert_eq!(refused(&with(4, 1)), "key slot reserved");
        assert_eq!(refused(&with(PLACE - 1, 1)), "key slot padding");
        assert_eq!(refused(&with(56, 0)), "recipient kind");
        assert_eq!(refused(&with(56, 4)), "recipient kind");
        assert_eq!(refused(&with(57, 1)), "recipient reserved");
        assert_eq!(refused(&with(58, 1)), "recipient reference");
        assert_eq!(refused(&with(60, 47)), "recipient wrapped key");
        assert_eq!(refused(&with(62, 1)), "recipient reserved");
        assert_eq!(refused(&with(61, 0xff)), "recipient length");
    }

    #[test]
    fn slot_never_panics_when_cut_anywhere() {
        let good = encoded(&all());
        for len in 0..good.len() {
            let cut = KeySlot::decode(&good[..len]);
            assert_eq!(cut.is_ok(), len >= all().encoded_len(), "{len}");
        }
    }

    #[test]
    fn encode_refuses_what_decode_would() {
        let mut place = vec![0; PLACE];
        let mut refuse = |slot: &KeySlot| slot.encode(&mut place).expect_err("refused");
        assert_eq!(refuse(&slot(&[])), FormatError::Field("recipients"));
        let many = slot(&[RecipientKind::LocalMaster; 17]);
        assert_eq!(refuse(&many), FormatError::Field("recipients"));
        assert_eq!(refuse(&slot(&[RecipientKind::AwsKms; 4])), FormatError::Field("recipients"));
        for kind in [RecipientKind::LocalMaster, RecipientKind::X25519] {
            let mut s = slot(&[kind]);
            s.recipients[0].key_ref.push(0);
            assert_eq!(refuse(&s), FormatError::Field("recipient reference"));
            let mut s = slot(&[kind]);
            s.recipients[0].wrapped.pop();
            assert_eq!(refuse(&s), FormatError::Field("recipient wrapped key"));
        }
        assert!(slot(&[RecipientKind::LocalMaster; 15]).encode(&mut vec![0; PLACE]).is_ok());
    }

    #[test]
    fn limits_of_references_and_wrapped_keys() {
        for (r, w, fits) in [
            (1, 1, true),
            (2048, 6144, true),
            (0, 1, false),
            (2049, 1, false),
            (1, 0, false),
            (1, 6145, false),
        ] {
            let mut big = recipient(RecipientKind::AwsKms);
            (big.key_ref, big.wrapped) = (vec![b'r'; r], vec![2; w]);
            let mut bytes = Vec::new();
            big.encode(&mut bytes);
            let read = Recipient::decode(&mut Reader::new(&bytes, "short"), Role::Wrapped);
            assert_eq!(read.is_ok(), fits, "ref {r} wrapped {w}");
        }
    }
}
