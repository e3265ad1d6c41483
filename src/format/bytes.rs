//! Taking structures apart and putting them together, byte by byte.
//!
//! A [`Reader`] never reads past its end and never panics: running out of bytes is an error of the
//! caller's choice of name. Must not know any structure of the format.

use super::FormatError;

/// Are all bytes zero? True for no bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|w| *w == [0; 8]) && rest.iter().all(|b| *b == 0)
}

/// Reads little-endian fields one after the other.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    field: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; running out of them is `FormatError::Field(field)`.
    pub fn new(bytes: &'a [u8], field: &'static str) -> Self {
        Self { rest: bytes, field }
    }
    pub fn is_done(&self) -> bool {
        self.rest.is_empty()
    }
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(FormatError::Field(self.field))?;
        self.rest = tail;
        Ok(head)
    }
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) =
            self.rest.split_first_chunk::<N>().ok_or(FormatError::Field(self.field))?;
        self.rest = tail;
        Ok(*head)
    }
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(|[b]| b)
    }
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }
    /// Skips `len` bytes that must be zero; `FormatError::Field(field)` when they are not.
    pub fn zero(&mut self, len: usize, field: &'static str) -> Result<(), FormatError> {
        match is_zero(self.take(len)?) {
            true => Ok(()),
            false => Err(FormatError::Field(field)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_out_in_order_and_the_end_is_an_error() {
        let bytes: Vec<u8> = (1..=18).collect();
        let mut r = Reader::new(&bytes, "short");
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(0x0302));
        assert_eq!(r.u32(), Ok(0x0706_0504));
        assert_eq!(r.u64(), Ok(0x0f0e_0d0c_0b0a_0908));
        assert_eq!(r.u32(), Err(FormatError::Field("short")));
        assert_eq!(r.take(3), Ok(&[16, 17, 18][..]));
        assert!(r.is_done() && r.rest().is_empty());
        assert_eq!(r.take(1), Err(FormatError::Field("short")));
    }

    #[test]
    fn zero_notices_a_single_bit_anywhere() {
        for len in 0..40 {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for bit in 0..len * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_zero(&bytes));
                let mut r = Reader::new(&bytes, "short");
                assert_eq!(r.zero(len, "reserved"), Err(FormatError::Field("reserved")));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
