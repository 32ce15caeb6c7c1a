// boltcheck lets real bbolt judge a snapshot file: boltcheck [-churn] FILE
//
// It works on a copy without the SHA-256 trailer (which it checks), runs bbolt's own consistency check, and prints one
// JSON line per bucket: its name, its number of records, and the CRC-32C over their keys and values in order; then one
// for the whole file, whose hash also covers the bucket names and is the one of `etcdutl snapshot status`.
//
// With -churn it then deletes records from the copy in several patterns, inserts them again, and repeats the check
// after each transaction: pages that bbolt can read must also survive being split and merged by it.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

func main() {
	churn := flag.Bool("churn", false, "also delete and insert records in a copy")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: boltcheck [-churn] FILE")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *churn); err != nil {
		fmt.Fprintln(os.Stderr, "boltcheck:", err)
		os.Exit(1)
	}
}

func run(path string, churn bool) error {
	dir, err := os.MkdirTemp("", "boltcheck")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "db")
	if err := copyWithoutTrailer(path, copied); err != nil {
		return err
	}
	db, err := bolt.Open(copied, 0o600, &bolt.Options{ReadOnly: !churn, NoFreelistSync: true, NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.View(check); err != nil {
		return err
	}
	if err := db.View(report); err != nil {
		return err
	}
	if churn {
		return shake(db)
	}
	return nil
}

// copyWithoutTrailer checks and cuts the digest where the length says that there is one.
func copyWithoutTrailer(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	trailer := size%512 == sha256.Size
	if trailer {
		size -= sha256.Size
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(out, sum), in, size); err != nil {
		return err
	}
	if trailer {
		stored, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if string(stored) != string(sum.Sum(nil)) {
			return errors.New("the SHA-256 trailer does not match")
		}
	}
	return out.Close()
}

func check(tx *bolt.Tx) error {
	var all []error
	for err := range tx.Check() {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func report(tx *bolt.Tx) error {
	table := crc32.MakeTable(crc32.Castagnoli)
	out := json.NewEncoder(os.Stdout)
	whole, buckets, total := crc32.New(table), 0, 0
	err := tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
		one, records := crc32.New(table), 0
		buckets++
		whole.Write(name)
		err := bucket.ForEach(func(k, v []byte) error {
			records++
			for _, part := range [][]byte{k, v} {
				one.Write(part)
				whole.Write(part)
			}
			return nil
		})
		if err != nil {
			return err
		}
		total += records
		return out.Encode(struct {
			Bucket  string `json:"bucket"`
			Records int    `json:"records"`
			Hash    uint32 `json:"hash"`
		}{string(name), records, one.Sum32()})
	})
	if err != nil {
		return err
	}
	return out.Encode(struct {
		Buckets int    `json:"buckets"`
		Records int    `json:"records"`
		Hash    uint32 `json:"hash"`
		Size    int64  `json:"size"`
	}{buckets, total, whole.Sum32(), tx.Size()})
}

// shake deletes and re-inserts records: every second, the first tenth, the last tenth, all but every hundredth, all.
func shake(db *bolt.DB) error {
	patterns := map[string]func(i, n int) bool{
		"every second":           func(i, n int) bool { return i%2 == 0 },
		"the first tenth":        func(i, n int) bool { return i < (n+9)/10 },
		"the last tenth":         func(i, n int) bool { return i >= n-(n+9)/10 },
		"all but each hundredth": func(i, n int) bool { return i%100 != 50 },
		"all":                    func(i, n int) bool { return true },
	}
	for name, chosen := range patterns {
		if err := shakeOnce(db, chosen); err != nil {
			return fmt.Errorf("after deleting %s: %w", name, err)
		}
	}
	return nil
}

func shakeOnce(db *bolt.DB, chosen func(i, n int) bool) error {
	// A copy, so that each pattern meets the pages as they were written.
	path := db.Path() + ".churn"
	if err := db.View(func(tx *bolt.Tx) error { return tx.CopyFile(path, 0o600) }); err != nil {
		return err
	}
	defer os.Remove(path)
	copied, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		return err
	}
	defer copied.Close()

	type record struct{ bucket, key, value []byte }
	var gone []record
	err = copied.Update(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			n := 0
			if err := bucket.ForEach(func(_, _ []byte) error { n++; return nil }); err != nil {
				return err
			}
			i, start := 0, len(gone)
			if err := bucket.ForEach(func(k, v []byte) error {
				if chosen(i, n) {
					gone = append(gone, record{clone(name), clone(k), clone(v)})
				}
				i++
				return nil
			}); err != nil {
				return err
			}
			for _, r := range gone[start:] {
				if err := bucket.Delete(r.key); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := copied.View(check); err != nil {
		return err
	}
	err = copied.Update(func(tx *bolt.Tx) error {
		for _, r := range gone {
			if err := tx.Bucket(r.bucket).Put(r.key, r.value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return copied.View(check)
}

func clone(b []byte) []byte { return append([]byte{}, b...) }
