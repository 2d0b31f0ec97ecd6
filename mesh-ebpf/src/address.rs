//! Addresses as the programs compute with them: four words in network byte order, IPv4
//! in its v4-mapped form.

/// Third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();
/// 127.0.0.1.
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();

/// An address, IPv4 v4-mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) [u32; 4]);

impl Address {
    /// `::` or, in an event, "not known".
    pub(crate) const UNSPECIFIED: Self = Self([0; 4]);
    /// `::1`.
    pub(crate) const LOOPBACK_V6: Self = Self([0, 0, 0, 1_u32.to_be()]);
    /// `::ffff:127.0.0.1`.
    pub(crate) const LOOPBACK_MAPPED: Self = Self::v4(LOOPBACK_V4);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub(crate) const fn v4(address: u32) -> Self {
        Self([0, 0, MAPPED, address])
    }

    #[inline(always)]
    pub(crate) fn from_bytes(bytes: &[u8; 16]) -> Self {
        // SAFETY: any 16 bytes are four words; the read is unaligned.
        Self(unsafe { bytes.as_ptr().cast::<[u32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    pub(crate) const fn bytes(self) -> [u8; 16] {
        // SAFETY: four words are any 16 bytes.
        unsafe { core::mem::transmute(self.0) }
    }

    #[inline(always)]
    pub(crate) const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The last word: the IPv4 address in network byte order.
    #[inline(always)]
    pub(crate) const fn as_v4(self) -> u32 {
        self.0[3]
    }

    /// 127.0.0.0/8 or `::1`, v4-mapped too.
    #[inline(always)]
    pub(crate) const fn is_loopback(self) -> bool {
        if self.is_v4() {
            return self.as_v4().to_ne_bytes()[0] == 127;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
    }

    /// fe80::/10.
    #[inline(always)]
    pub(crate) const fn is_link_local(self) -> bool {
        let [first, second, ..] = self.0[0].to_ne_bytes();
        first == 0xfe && second & 0xc0 == 0x80
    }

    /// What `connect` treats as this host: loopback, and the unspecified address, which
    /// the kernel takes for it.
    #[inline(always)]
    pub(crate) const fn is_local(self) -> bool {
        self.is_unspecified() || self.is_loopback()
    }

    /// `::` or 0.0.0.0.
    #[inline(always)]
    pub(crate) const fn is_unspecified(self) -> bool {
        let v4 = self.is_v4() && self.as_v4() == 0;
        v4 || (self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0)
    }
}
