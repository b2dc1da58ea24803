// Opennote opens a checkpoint of ours with golang.org/x/mod/sumdb/note, and checks a c2sp.org/tlog-proof of ours with
// filippo.io/torchwood: programs that know nothing of us. The question comes as JSON on standard input; exit status 0
// means that everything holds, and the names of those who signed are printed, one a line.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	log.SetFlags(0)
	var question struct {
		Note  string
		Log   string
		Proof string
		Entry []byte
		Seen  []string // vkeys of cosigners, all of which must have signed
	}
	check(json.NewDecoder(os.Stdin).Decode(&question))
	own, err := note.NewVerifier(question.Log)
	check(err)
	verifiers := []note.Verifier{own}
	policies := []torchwood.Policy{torchwood.OriginPolicy(own.Name()), torchwood.SingleVerifierPolicy(own)}
	for _, vkey := range question.Seen {
		cosigner, err := torchwood.NewCosignatureVerifier(vkey)
		check(err)
		verifiers = append(verifiers, cosigner)
		policies = append(policies, torchwood.SingleVerifierPolicy(cosigner))
	}
	opened, err := note.Open([]byte(question.Note), note.VerifierList(verifiers...))
	check(err)
	if len(opened.Sigs) != len(verifiers) {
		log.Fatalf("%d of %d signatures", len(opened.Sigs), len(verifiers))
	}
	if question.Proof != "" {
		all := torchwood.ThresholdPolicy(len(policies), policies...)
		check(torchwood.VerifyProof(all, tlog.RecordHash(question.Entry), []byte(question.Proof)))
	}
	for _, signature := range opened.Sigs {
		fmt.Println(signature.Name)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
