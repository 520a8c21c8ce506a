// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

var screenshots = flag.String("screenshots", "", "the folder that TestScreenshots leaves pictures of the page in")

// The pictures of the documents are made here, so that they show the page as it is: docs has
// page-light.png, page-dark.png and page-phone.png.
// go test ./exporter/page -run TestScreenshots -args -screenshots /tmp
func TestScreenshots(t *testing.T) {
	folder := cmp.Or(*screenshots, t.TempDir())
	h := example(t)
	for name, shot := range map[string]struct {
		fragment string
		prepare  []action
	}{
		"page-light":          {"#/now", []action{scheme("light"), sized(1280, 860, 1, false)}},
		"page-dark":           {"#/now?group=project", []action{scheme("dark"), sized(1280, 860, 1, false)}},
		"page-phone":          {"#/now", []action{scheme("light"), phone()}},
		"page-container":      {"#/container/" + exampleID(0), []action{scheme("light"), sized(1280, 1900, 1, false)}},
		"page-container-dark": {"#/container/" + exampleID(2), []action{scheme("dark"), sized(1280, 1400, 1, false)}},
		"page-history":        {"#/history", []action{scheme("light"), sized(1280, 1000, 1, false)}},
		"page-quotas":         {"#/quotas", []action{scheme("dark"), sized(1280, 700, 1, false)}},
		"page-health":         {"#/health", []action{scheme("light"), sized(1280, 1100, 1, false)}},
		"page-history-phone":  {"#/history", []action{scheme("dark"), phone()}},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, h, shot.fragment, shot.prepare...)
			for range 4 {
				h.wave(uint64(h.boot/time.Second), 10)
				h.second()
			}
			b.wait(`!document.body.innerText.includes("Reading the ledger") && !document.querySelector(".pulse:not(.on)")`)
			eval[string](b, `new Promise((done) => setTimeout(() => requestAnimationFrame(() => done("")), 300))`)
			picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
			if err != nil {
				t.Fatal(err)
			}
			decoded, err := png.Decode(bytes.NewReader(picture))
			if err != nil {
				t.Fatal(err)
			}
			wide := decoded.Bounds().Dx()
			if eval[int](b, "document.documentElement.scrollWidth > innerWidth ? 1 : 0") == 1 {
				t.Error("the page is wider than the window")
			}
			if n := colours(decoded); n < 20 || wide < 700 {
				t.Errorf("a picture %d pixels wide with %d colours: nothing is on it", wide, n)
			}
			var small bytes.Buffer
			if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, inFewColours(decoded)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, name+".png"), small.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// colours counts the colours of a picture.
func colours(picture image.Image) int { return len(howOften(picture)) }

// howOften says how many pixels of a picture have each colour.
func howOften(picture image.Image) map[color.Color]int {
	often := map[color.Color]int{}
	size := picture.Bounds()
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			often[picture.At(x, y)]++
		}
	}
	return often
}

// inFewColours returns a picture in the 256 colours that it has most of.
func inFewColours(picture image.Image) image.Image {
	often, size := howOften(picture), picture.Bounds()
	most := slices.SortedFunc(maps.Keys(often), func(a, b color.Color) int { return often[b] - often[a] })
	small := image.NewPaletted(size, most[:min(len(most), 256)])
	draw.Draw(small, size, picture, size.Min, draw.Src)
	return small
}

func exampleID(i int) string { return fmt.Sprintf("%064x", uint64(i+1)*0x9e3779b97f4a7c15) }

// example is a host as many are: some stacks of compose, a pod, one on the host's network, and
// fifteen minutes of traffic.
func example(t *testing.T) *host {
	h := newHost(t)
	stacks := []struct{ name, project string }{
		{"shop-web-1", "shop"}, {"shop-api-1", "shop"}, {"shop-db-1", "shop"}, {"shop-cache-1", "shop"},
		{"media-jellyfin-1", "media"}, {"media-sync-1", "media"}, {"backup", ""}, {"prometheus", "monitoring"},
		{"grafana", "monitoring"}, {"node-exporter", "monitoring"}, {"mail-postfix-1", "mail"}, {"mail-dovecot-1", "mail"}, {"registry", ""}, {"vpn", ""},
	}
	for i, s := range stacks {
		h.add(exampleID(i), s.name, func(c *usage.Container) {
			c.Labels = map[string]string{}
			if s.project != "" {
				c.Labels["com.docker.compose.project"] = s.project
			}
			moved(c, uint64(14-i)*7_654_321_000, uint64(i+3)*1_234_567_000)
			switch s.name {
			case "node-exporter":
				c.NetworkMode, c.OnHost, c.Reason, c.Interfaces, c.Traffic = "host", true, usage.HostNetwork, nil, usage.Traffic{}
			case "shop-db-1":
				c.Interfaces[0].Receive.Seeded.Bytes, c.Receive.Seeded.Bytes = 1_000_000, 1_000_000
				c.Interfaces[0].Shadowed, c.Reason = true, usage.Shadowed
			}
		})
	}
	h.foremost = map[string]quota.Foremost{
		exampleID(0): {Quota: "monthly", Key: "shop-web-1", Ratio: 0.63}, exampleID(4): {Quota: "monthly", Key: "media-jellyfin-1", Ratio: 0.91},
		exampleID(6): {Quota: "monthly", Key: "backup", Ratio: 1.04},
	}
	month := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for i, q := range []struct {
		key  string
		used float64
	}{{"shop-web-1", 0.63}, {"media-jellyfin-1", 0.91}, {"backup", 1.04}, {"mail-postfix-1", 0.02}} {
		const limit = 107_374_182_400
		h.quotas = append(h.quotas, quota.Status{
			Quota: "monthly", Key: q.key, Name: q.key, Per: "name", Count: "transmit_bytes", Source: "interface", Unit: "bytes", Limit: limit,
			Used: q.used * limit, Ratio: q.used, Every: "month", PeriodStart: month, PeriodEnd: month.AddDate(0, 1, 0),
			Projected: q.used * limit * 1.4, Predictable: i != 3, Levels: []quota.Level{{Name: "80", Firing: q.used > 0.8}, {Name: "100", Firing: q.used > 1}},
		})
		if q.used > 0.8 {
			h.alerts = append(h.alerts, quota.Alert{
				ID: "monthly/" + q.key, Quota: "monthly", Key: q.key, Level: "80", State: "firing", StartsAt: h.began, Unit: "bytes",
				Used: q.used * limit, Limit: limit, Ratio: q.used, Summary: fmt.Sprintf("monthly: %s has used %.0f %% of 100GiB", q.key, q.used*100),
			})
		}
	}
	h.rows = func(q exporter.HistoryQuery) []exporter.HistoryRow {
		var rows []exporter.HistoryRow
		step := map[string]time.Duration{"hour": time.Hour, "day": 24 * time.Hour, "month": 31 * 24 * time.Hour}[q.Step]
		end := h.began.Truncate(step)
		for i := range 24 {
			for j, s := range stacks[:8] {
				if q.By == "container" && j > 0 {
					continue
				}
				n := uint64((i*7+j*5)%11+1) * uint64(20-j) * 40_000_000
				start := end.Add(-time.Duration(24-i) * step)
				rows = append(rows, exporter.HistoryRow{
					Start: start, End: start.Add(step), Key: s.name,
					Receive: exporter.HistoryCounts{Bytes: n}, Transmit: exporter.HistoryCounts{Bytes: n / 3},
				})
			}
		}
		return rows
	}
	for i := range 900 { // what the plot begins with
		h.wave(uint64(i), 10)
		h.second()
	}
	return h
}

// wave lets each container move what a second brings, and little of it in another.
func (h *host) wave(at, part uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range h.all {
		if len(c.Interfaces) == 0 {
			continue
		}
		turn := (at/10*uint64(i*i+3)*2654435761 + at*uint64(i+1)*40503) >> 9 % 64
		receive := uint64(15-i) * uint64(15-i) * (60_000 + turn*2_500) / part
		if i == 4 && at > 300 && at < 620 {
			receive *= 4
		}
		moved(c, receive, receive/3+turn*400)
	}
}
