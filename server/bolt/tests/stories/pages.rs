//! Files that [`ferretcd_bolt::Writer`] would not write but bbolt may: laid out page by page.
