// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/nettally/nettally/internal/quota"
)

// secretMax is the longest secret; a longer file is most likely another one.
const secretMax = 4096

// webhook posts alerts to a server of any kind.
type webhook struct {
	Webhook
	options Options
	server
}

func (w *webhook) deliver(ctx context.Context, alerts []quota.Alert) error {
	for _, a := range alerts {
		if err := w.one(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (w *webhook) one(ctx context.Context, a quota.Alert) error {
	delivery, body, err := payloadOf(a, w.options.Instance)
	if err != nil {
		return err
	}
	now := strconv.FormatInt(w.options.Now().Unix(), 10)
	header := map[string]string{"X-Nettally-Delivery": delivery, "X-Nettally-Timestamp": now}
	if w.SecretFile != "" {
		secret, err := readSecret(w.SecretFile)
		if err != nil {
			return &failure{cause: err, everyone: true}
		}
		header["X-Nettally-Signature"] = sign(secret, now, body)
	}
	return w.post(ctx, w.URL, body, header)
}

// sign returns the signature of a body that is sent at a time, in Unix seconds.
func sign(secret []byte, at string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(at + "."))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// readSecret returns what is in a file, without the end of its last line.
func readSecret(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("read secret %s: it is not a file", path)
	case info.Mode().Perm()&0o004 != 0:
		return nil, fmt.Errorf("read secret %s: everyone can read it; chmod o-rwx it", path)
	}
	secret, err := io.ReadAll(io.LimitReader(file, secretMax+1))
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if len(secret) > secretMax {
		return nil, fmt.Errorf("read secret %s: longer than %d bytes", path, secretMax)
	}
	secret = bytes.TrimRight(secret, "\r\n")
	if len(secret) == 0 {
		return nil, errors.New("read secret " + path + ": it is empty")
	}
	return secret, nil
}
