package virustotal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copied is a file without a name.
type copied struct {
	*os.File
	size int64
}

func (c *copied) Size() int64 { return c.size }

// Private copies what from gives into a file of its own in dir, that has no name there, and looks at the hash of the copy: what it
// returns are the bytes that were hashed, whatever becomes of the file that they came from.
func Private(dir string, from io.Reader, want string) (Copy, error) {
	f, err := nameless(dir)
	if err != nil {
		return nil, fmt.Errorf("make a private copy: %w", err)
	}
	h := sha256.New()
	source := &reader{r: from}
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(source, MaxUpload+1))
	switch {
	case source.err != nil:
		err = &FetchError{"it could not be read: " + source.err.Error()}
	case err != nil:
		err = fmt.Errorf("make a private copy: %w", err)
	case n > MaxUpload:
		err = &FetchError{fmt.Sprintf("it has more than %d bytes", MaxUpload)}
	case hex.EncodeToString(h.Sum(nil)) != want:
		err = &FetchError{"the file is another one now"}
	default:
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &copied{f, n}, nil
}

// reader remembers that it was the source that failed, not the copy.
type reader struct {
	r   io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// nameless makes a file that is gone when it is closed.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "copy"), nil
	}
	f, err := os.CreateTemp(dir, ".upload-") // a file system without O_TMPFILE
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
