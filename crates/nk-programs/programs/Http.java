import com.sun.net.httpserver.HttpServer;
import java.io.*;
import java.net.*;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.util.*;
import java.util.concurrent.*;

/** The JVM's ways to the network: blocking sockets, NIO selectors, the HTTP server and client of the JDK, asynchronous channels. */
public class Http {
    static byte[] body(int size) {
        byte[] bytes = new byte[size];
        for (int i = 0; i < size; i++) bytes[i] = (byte) (i * 31 + i / 251);
        return bytes;
    }

    static void must(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    /** An HTTP server at port, an echo by a selector at port + 1, an echo by blocking sockets and threads at port + 2. */
    static void serve(int port) throws Exception {
        InetAddress loopback = InetAddress.getByAddress(new byte[] {127, 0, 0, 1});
        HttpServer server = HttpServer.create(new InetSocketAddress(loopback, port), 50);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            byte[] sent = exchange.getRequestBody().readAllBytes();
            byte[] answer = sent.length > 0 ? sent : body(Integer.parseInt(exchange.getRequestURI().getPath().substring(1)));
            exchange.sendResponseHeaders(200, answer.length == 0 ? -1 : answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(loopback, port + 1)).configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        Thread echo = new Thread(() -> {
            try {
                while (true) select(selector, listener);
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        });
        echo.setDaemon(true);
        echo.start();
        ServerSocket blocking = new ServerSocket(port + 2, 50, loopback);
        Thread threads = new Thread(() -> {
            while (true) {
                try {
                    Socket one = blocking.accept();
                    new Thread(() -> {
                        try (one) {
                            one.getInputStream().transferTo(one.getOutputStream());
                        } catch (IOException e) {
                            System.err.println("echo: " + e);
                        }
                    }).start();
                } catch (IOException e) {
                    return;
                }
            }
        });
        threads.setDaemon(true);
        threads.start();
        System.out.println("listening");
    }

    static void select(Selector selector, ServerSocketChannel listener) throws IOException {
        selector.select();
        for (Iterator<SelectionKey> keys = selector.selectedKeys().iterator(); keys.hasNext(); ) {
            SelectionKey key = keys.next();
            keys.remove();
            if (key.isAcceptable()) {
                SocketChannel one = listener.accept();
                one.configureBlocking(false);
                one.register(selector, SelectionKey.OP_READ, ByteBuffer.allocate(65536));
                continue;
            }
            SocketChannel one = (SocketChannel) key.channel();
            ByteBuffer buffer = (ByteBuffer) key.attachment();
            if (key.isReadable() && one.read(buffer) < 0) {
                one.close();
                continue;
            }
            buffer.flip();
            one.write(buffer);
            buffer.compact();
            key.interestOps((buffer.position() > 0 ? SelectionKey.OP_WRITE : 0) | (buffer.hasRemaining() ? SelectionKey.OP_READ : 0));
        }
    }

    static void client(int port, int closed) throws Exception {
        String base = "http://127.0.0.1:" + port + "/";
        HttpClient client = HttpClient.newHttpClient();
        List<CompletableFuture<HttpResponse<byte[]>>> all = new ArrayList<>();
        for (int i = 0; i < 50; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(base + i * 1000)).timeout(java.time.Duration.ofSeconds(20)).build();
            all.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofByteArray()));
        }
        for (int i = 0; i < 50; i++) must(Arrays.equals(all.get(i).get().body(), body(i * 1000)), "HttpClient " + i);
        byte[] large = body(5_000_000);
        HttpRequest post = HttpRequest.newBuilder(URI.create(base)).POST(HttpRequest.BodyPublishers.ofByteArray(large)).build();
        must(Arrays.equals(client.send(post, HttpResponse.BodyHandlers.ofByteArray()).body(), large), "a large upload");
        URLConnection old = new URL(base + "77777").openConnection(java.net.Proxy.NO_PROXY);
        must(Arrays.equals(old.getInputStream().readAllBytes(), body(77777)), "HttpURLConnection");
        for (int at = port + 1; at <= port + 2; at++) {
            echo(at, large);
            asynchronous(at);
        }
        timeouts(port + 2);
        closing(port + 2);
        try (Socket refused = new Socket()) {
            refused.connect(new InetSocketAddress("127.0.0.1", closed), 5000);
            must(false, "a closed port accepted");
        } catch (ConnectException e) {
            must(e.getMessage().contains("refused"), e.toString());
        }
        System.out.println("done");
        System.exit(0);
    }

    static void echo(int port, byte[] large) throws Exception {
        try (Socket one = new Socket("127.0.0.1", port)) {
            one.setTcpNoDelay(true);
            one.setKeepAlive(true);
            one.setTrafficClass(0x10);
            one.setReceiveBufferSize(100_000);
            must(one.getTcpNoDelay() && one.getKeepAlive(), "options");
            Thread writer = new Thread(() -> {
                try {
                    one.getOutputStream().write(large);
                    one.shutdownOutput();
                } catch (IOException e) {
                    throw new UncheckedIOException(e);
                }
            });
            writer.start();
            must(Arrays.equals(one.getInputStream().readAllBytes(), large), "echo at " + port);
            writer.join();
        }
    }

    static void asynchronous(int port) throws Exception {
        try (AsynchronousSocketChannel one = AsynchronousSocketChannel.open()) {
            one.connect(new InetSocketAddress("127.0.0.1", port)).get(10, TimeUnit.SECONDS);
            ByteBuffer there = ByteBuffer.wrap("asynchronous".getBytes()), back = ByteBuffer.allocate(12);
            while (there.hasRemaining()) one.write(there).get(10, TimeUnit.SECONDS);
            while (back.hasRemaining()) must(one.read(back).get(10, TimeUnit.SECONDS) > 0, "asynchronous read");
            must(new String(back.array()).equals("asynchronous"), "asynchronous echo");
        }
    }

    static void timeouts(int port) throws Exception {
        try (Socket one = new Socket("127.0.0.1", port)) {
            one.setSoTimeout(50);
            one.getInputStream().read();
            must(false, "read without a timeout");
        } catch (SocketTimeoutException e) {
            // As it has to be.
        }
    }

    /** Closing a socket or channel wakes the thread that is blocked in it. */
    static void closing(int port) throws Exception {
        Socket one = new Socket("127.0.0.1", port);
        Thread closer = new Thread(() -> {
            try {
                Thread.sleep(100);
                one.close();
            } catch (Exception e) {
                throw new RuntimeException(e);
            }
        });
        closer.start();
        try {
            one.getInputStream().read();
            must(false, "read of a closed socket");
        } catch (SocketException e) {
            closer.join();
        }
        SocketChannel two = SocketChannel.open(new InetSocketAddress("127.0.0.1", port));
        Thread interrupted = Thread.currentThread();
        Thread interrupter = new Thread(() -> {
            try {
                Thread.sleep(100);
            } catch (InterruptedException e) {
                return;
            }
            interrupted.interrupt();
        });
        interrupter.start();
        try {
            two.read(ByteBuffer.allocate(1));
            must(false, "read of an interrupted channel");
        } catch (ClosedByInterruptException e) {
            Thread.interrupted();
            interrupter.join();
        }
    }

    public static void main(String[] words) throws Exception {
        int port = Integer.parseInt(words[1]);
        if (words[0].equals("server")) serve(port);
        else client(port, Integer.parseInt(words[2]));
    }
}
