import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Provider;
import java.security.Security;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.Base64;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLSession;
import javax.net.ssl.X509TrustManager;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.est.CACertsResponse;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequestBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

/**
 * Drives Bouncy Castle's EST client through one operation and says what came of it, one fact a line.
 *
 * <pre>
 * EstDriver server=HOST:PORT trust=PEM op=cacerts|csrattrs|enroll|reenroll|enroll-bound
 *           [label=L] [tls=jdk|bc] [protocol=TLSv1.2] [client=P12] [user=U secret=S]
 *           [subject=RFC4514] [key=ec|rsa] [out=P12]
 * </pre>
 *
 * Keystores have the password "estd". Lines: {@code tls VERSION SUITE}, {@code cacert BASE64}, {@code csrattr OID},
 * {@code certificate BASE64}, {@code refused STATUS TEXT}, {@code pending EPOCH_MILLIS}.
 */
public final class EstDriver {
    private static final char[] PASSWORD = "estd".toCharArray();
    private static final int TIMEOUT_MILLIS = 10_000;
    private static final long READ_AT_MOST_BYTES = 1 << 20;

    private final Map<String, String> options;

    private EstDriver(Map<String, String> options) {
        this.options = options;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (String argument : arguments) {
            int equals = argument.indexOf('=');
            options.put(argument.substring(0, equals), argument.substring(equals + 1));
        }
        Security.addProvider(new BouncyCastleProvider());
        try {
            new EstDriver(options).run();
        } catch (ESTException refused) {
            System.out.println("refused " + refused.getStatusCode() + " " + bodyOf(refused));
        }
    }

    private void run() throws Exception {
        switch (options.get("op")) {
            case "cacerts" -> {
                CACertsResponse answer = service().getCACerts();
                System.out.println("trusted " + answer.isTrusted());
                tell(answer.getSession());
                for (X509CertificateHolder holder : ESTService.storeToArray(answer.getCertificateStore())) {
                    tell("cacert", holder);
                }
            }
            case "csrattrs" -> {
                CSRRequestResponse answer = service().getCSRAttributes();
                tell(answer.getSession());
                if (answer.hasAttributesResponse()) {
                    for (ASN1ObjectIdentifier oid : answer.getAttributesResponse().getRequirements()) {
                        System.out.println("csrattr " + oid.getId());
                    }
                }
            }
            case "enroll" -> enroll(false, false);
            case "reenroll" -> enroll(true, false);
            case "enroll-bound" -> enroll(false, true);
            default -> throw new IllegalArgumentException(options.get("op"));
        }
    }

    private void enroll(boolean again, boolean bound) throws Exception {
        KeyPair pair = newKeyPair(options.getOrDefault("key", "ec"));
        X500Name subject =
            options.containsKey("subject")
                ? new X500Name(options.get("subject"))
                : X500Name.getInstance(ownCertificate().getSubjectX500Principal().getEncoded());
        PKCS10CertificationRequestBuilder builder = new JcaPKCS10CertificationRequestBuilder(subject, pair.getPublic());
        ContentSigner signer =
            new JcaContentSignerBuilder(pair.getPrivate().getAlgorithm().equals("RSA") ? "SHA256withRSA" : "SHA256withECDSA")
                .setProvider("BC")
                .build(pair.getPrivate());
        EnrollmentResponse answer =
            bound
                ? service().simpleEnrollPoP(again, builder, signer, auth())
                : service().simpleEnroll(again, builder.build(signer), auth());
        tell(answer.getSession());
        if (!answer.isCompleted()) {
            System.out.println("pending " + answer.getNotBefore());
            return;
        }
        X509CertificateHolder[] holders = ESTService.storeToArray(answer.getStore());
        for (X509CertificateHolder holder : holders) {
            tell("certificate", holder);
        }
        if (options.containsKey("out")) {
            Certificate leaf = certificate(holders[0].getEncoded());
            KeyStore store = KeyStore.getInstance("PKCS12");
            store.load(null, null);
            store.setKeyEntry("device", pair.getPrivate(), PASSWORD, new Certificate[] {leaf});
            try (OutputStream file = Files.newOutputStream(Path.of(options.get("out")))) {
                store.store(file, PASSWORD);
            }
        }
    }

    private ESTService service() throws Exception {
        String[] server = options.get("server").split(":");
        Set<TrustAnchor> anchors = new HashSet<>();
        try (InputStream file = Files.newInputStream(Path.of(options.get("trust")))) {
            for (Certificate anchor : CertificateFactory.getInstance("X.509").generateCertificates(file)) {
                anchors.add(new TrustAnchor((X509Certificate) anchor, null));
            }
        }
        X509TrustManager[] trust = JcaJceUtils.getCertPathTrustManager(anchors, null);
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(server[0], Integer.parseInt(server[1]), trust);
        Provider tls = options.getOrDefault("tls", "jdk").equals("bc") ? new BouncyCastleJsseProvider() : null;
        if (tls != null) {
            Security.addProvider(tls);
            builder.withProvider(tls).withChannelBindingProvider(new Binding());
        }
        if (options.containsKey("protocol")) {
            builder.withTLSVersion(options.get("protocol"));
        }
        if (options.containsKey("client")) {
            KeyManagerFactory keys =
                tls != null ? KeyManagerFactory.getInstance("PKIX", tls) : KeyManagerFactory.getInstance("PKIX");
            keys.init(clientStore(), PASSWORD);
            builder.withKeyManagers(keys.getKeyManagers());
        }
        builder.withTimeout(TIMEOUT_MILLIS).withReadLimit(READ_AT_MOST_BYTES);
        if (options.containsKey("label")) {
            builder.withLabel(options.get("label"));
        }
        return builder.build();
    }

    private ESTAuth auth() throws Exception {
        if (!options.containsKey("user")) {
            return null;
        }
        return new JcaHttpAuthBuilder(options.get("user"), options.get("secret").toCharArray()).setProvider("BC").build();
    }

    private KeyStore clientStore() throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream file = Files.newInputStream(Path.of(options.get("client")))) {
            store.load(file, PASSWORD);
        }
        return store;
    }

    private X509Certificate ownCertificate() throws Exception {
        KeyStore store = clientStore();
        return (X509Certificate) store.getCertificate(store.aliases().nextElement());
    }

    private static KeyPair newKeyPair(String kind) throws Exception {
        KeyPairGenerator generator = KeyPairGenerator.getInstance(kind.equals("rsa") ? "RSA" : "EC", "BC");
        if (kind.equals("rsa")) {
            generator.initialize(2048);
        } else {
            generator.initialize(new ECGenParameterSpec("P-256"));
        }
        return generator.generateKeyPair();
    }

    private static Certificate certificate(byte[] der) throws Exception {
        return CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(der));
    }

    private static void tell(String word, X509CertificateHolder holder) throws IOException {
        System.out.println(word + " " + Base64.getEncoder().encodeToString(holder.getEncoded()));
    }

    private static void tell(Object session) {
        if (session instanceof SSLSession tls) {
            System.out.println("tls " + tls.getProtocol() + " " + tls.getCipherSuite());
        }
    }

    private static String bodyOf(ESTException refused) throws IOException {
        ByteArrayOutputStream text = new ByteArrayOutputStream();
        if (refused.getBody() != null) {
            refused.getBody().transferTo(text);
        }
        String said = text.toString(StandardCharsets.UTF_8).strip().replace('\n', ' ');
        return said.isEmpty() ? String.valueOf(refused.getMessage()) : said;
    }

    /** RFC 7030 §3.5: only Bouncy Castle's own TLS tells the channel binding. */
    private static final class Binding implements ChannelBindingProvider {
        @Override
        public boolean canAccessChannelBinding(Socket socket) {
            return socket instanceof BCSSLSocket;
        }

        @Override
        public byte[] getChannelBinding(Socket socket, String kind) {
            return ((BCSSLSocket) socket).getConnection().getChannelBinding(kind);
        }
    }
}
